-- Version 1. `n` is SQLite's own row number and never leaves the program; `id` is what callers know.
CREATE TABLE conversations (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    metadata TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    bytes INTEGER NOT NULL DEFAULT 0,
    summary TEXT,
    summary_up_to TEXT,
    summary_tokens INTEGER
) STRICT;
CREATE INDEX conversations_newest ON conversations (owner, updated_at DESC, id DESC);

-- Positions of a conversation are 0, 1, 2, ...: messages are only appended, and removed from the end.
CREATE TABLE messages (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    conversation INTEGER NOT NULL REFERENCES conversations (n) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    role TEXT NOT NULL,
    text TEXT NOT NULL,    -- what can be searched; the whole content if that is a string
    content TEXT,          -- the content as JSON if it is not a string
    reasoning TEXT,
    tool_calls TEXT,
    tool_call_id TEXT,
    model TEXT,
    tokens INTEGER,
    metadata TEXT,
    created_at INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    UNIQUE (conversation, position)
) STRICT;

-- Both indexes read their words from the tables, so no text is stored twice. The words of a deleted message stay in the
-- index, as deleted ones, until `Store::maintain` merges it. ('secure-delete' would take them out at once, but the check
-- of an index whose last word it removed says that it is corrupt.)
CREATE VIRTUAL TABLE titles_words USING fts5 (title, content='conversations', content_rowid='n',
    tokenize='unicode61 remove_diacritics 2');
CREATE VIRTUAL TABLE messages_words USING fts5 (text, content='messages', content_rowid='n',
    tokenize='unicode61 remove_diacritics 2');
CREATE TRIGGER titles_added AFTER INSERT ON conversations BEGIN
    INSERT INTO titles_words (rowid, title) VALUES (new.n, new.title);
END;
CREATE TRIGGER titles_changed AFTER UPDATE OF title ON conversations BEGIN
    INSERT INTO titles_words (titles_words, rowid, title) VALUES ('delete', old.n, old.title);
    INSERT INTO titles_words (rowid, title) VALUES (new.n, new.title);
END;
CREATE TRIGGER titles_removed AFTER DELETE ON conversations BEGIN
    INSERT INTO titles_words (titles_words, rowid, title) VALUES ('delete', old.n, old.title);
END;
CREATE TRIGGER messages_added AFTER INSERT ON messages BEGIN
    INSERT INTO messages_words (rowid, text) VALUES (new.n, new.text);
END;
CREATE TRIGGER messages_removed AFTER DELETE ON messages BEGIN
    INSERT INTO messages_words (messages_words, rowid, text) VALUES ('delete', old.n, old.text);
END;

CREATE TABLE responses (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    previous TEXT,
    depth INTEGER NOT NULL,
    model TEXT NOT NULL,
    input TEXT NOT NULL,
    output TEXT NOT NULL,
    settings TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    chain_bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX responses_owner ON responses (owner);
CREATE INDEX responses_expiry ON responses (expires_at);

CREATE TABLE keys (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    prefix BLOB NOT NULL,  -- the first 8 bytes of the hash, to find the row
    hash BLOB NOT NULL,    -- SHA-256 of the secret
    hint TEXT NOT NULL,    -- the secret's last characters, so that a person knows which one it is
    name TEXT NOT NULL,
    scopes TEXT NOT NULL,
    tokens_per_day INTEGER,
    tokens_per_month INTEGER,
    requests_per_minute INTEGER,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT;
CREATE INDEX keys_prefix ON keys (prefix);

CREATE TABLE usage (
    key INTEGER NOT NULL REFERENCES keys (n) ON DELETE CASCADE,
    period TEXT NOT NULL,  -- 'day' or 'month'
    begins_at INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    PRIMARY KEY (key, period, begins_at)
) STRICT, WITHOUT ROWID;
