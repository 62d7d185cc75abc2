-- Version 2. One vector of each message, for retrieval by meaning.
CREATE TABLE vectors (
    message INTEGER PRIMARY KEY REFERENCES messages (n) ON DELETE CASCADE,
    model TEXT NOT NULL,   -- what tells the model that made it from all others
    vector BLOB NOT NULL   -- little-endian f32
) STRICT;
