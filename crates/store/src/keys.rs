//! API keys: a random secret that is shown once and kept as its hash, what it may do, and how many tokens it has used.

use std::fmt::Write as _;

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::Fault;
use crate::messages::odd;
use crate::{Error, Period, Result, Store, UnixMs, ids, time};

/// 43 of 62 characters are 256 bits.
const SECRET_CHARS: usize = 43;
const NAME_BYTES_MAX: usize = 200;
const KEYS_MAX: u64 = 10_000;
/// Counters and ended keys are kept this long, for whoever asks what was used.
const KEPT_MS: i64 = 400 * time::DAY_MS;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Generate, embed, rerank, tokenize.
    Inference,
    /// List, load and unload models.
    Models,
    /// Read and change its own conversations and responses.
    Conversations,
    /// Read the metrics.
    Metrics,
    /// Everything, keys included.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Scope; 5] =
        [Scope::Inference, Scope::Models, Scope::Conversations, Scope::Metrics, Scope::Admin];

    /// The name in settings and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Inference => "inference",
            Scope::Models => "models",
            Scope::Conversations => "conversations",
            Scope::Metrics => "metrics",
            Scope::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = Error;

    fn from_str(s: &str) -> Result<Scope> {
        let known = Scope::ALL.map(Scope::name).join(", ");
        let found = Scope::ALL.into_iter().find(|scope| scope.name() == s);
        found.ok_or_else(|| Error::invalid("scope", format!("{s:.40?} is none of {known}")))
    }
}

/// How many tokens a key may use; none is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// From midnight to midnight, UTC.
    pub tokens_per_day: Option<u64>,
    /// A month of the calendar, UTC.
    pub tokens_per_month: Option<u64>,
}

/// A key that is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewKey {
    /// For people.
    pub name: String,
    /// What it may do; at least one.
    pub scopes: Vec<Scope>,
    /// How many tokens it may use.
    pub quota: Quota,
    /// How many requests a minute; the server counts them.
    pub requests_per_minute: Option<u32>,
    /// When it ends by itself.
    pub expires_at: Option<UnixMs>,
}

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    /// `key_` and 24 characters; the owner of what it stores.
    pub id: String,
    /// The secret's last four characters.
    pub hint: String,
    /// For people.
    pub name: String,
    /// What it may do, each once.
    pub scopes: Vec<Scope>,
    /// How many tokens it may use.
    #[serde(flatten)]
    pub quota: Quota,
    /// How many requests a minute.
    pub requests_per_minute: Option<u32>,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it ends by itself.
    pub expires_at: Option<UnixMs>,
    /// When it was revoked.
    pub revoked_at: Option<UnixMs>,
}

impl ApiKey {
    /// Whether it may do this; `admin` may do everything.
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

/// What a secret is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// This key.
    Good(ApiKey),
    /// Nothing: no such key.
    Unknown,
    /// Nothing any more: it was revoked.
    Revoked,
    /// Nothing any more: its time is over.
    Expired,
}

/// Tokens used in the current periods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Today.
    pub day: u64,
    /// This month.
    pub month: u64,
}

/// Tokens that were counted ahead, to be settled by [`Store::settle`] in the periods that they were taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "settle it with what was really used"]
pub struct Reservation {
    key: String,
    tokens: u64,
    taken_at: UnixMs,
}

impl Reservation {
    /// How many tokens were counted ahead.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
}

impl Store {
    /// Makes a key. The string is its secret, `qk_` and 43 characters, and cannot be had again.
    pub fn create_key(&self, new: &NewKey, now: UnixMs) -> Result<(ApiKey, String)> {
        let key = prepared(new, now)?;
        let secret = ids::random("qk_", SECRET_CHARS)?;
        let key = ApiKey { id: ids::id("key_")?, hint: secret[secret.len() - 4..].to_owned(), ..key };
        let hash = hash(&secret);
        self.write(|tx| {
            let count: i64 = tx.query_row("SELECT count(*) FROM keys", [], |r| r.get(0))?;
            if count.max(0) as u64 >= KEYS_MAX {
                return Err(Error::Full { what: "keys", limit: KEYS_MAX }.into());
            }
            tx.execute(
                "INSERT INTO keys (id, prefix, hash, hint, name, scopes, tokens_per_day, tokens_per_month, \
                 requests_per_minute, created_at, expires_at) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
                params![
                    key.id,
                    &hash[..8],
                    &hash[..],
                    key.hint,
                    key.name,
                    scopes_text(&key.scopes),
                    key.quota.tokens_per_day.map(|v| v as i64),
                    key.quota.tokens_per_month.map(|v| v as i64),
                    key.requests_per_minute,
                    now,
                    key.expires_at
                ],
            )?;
            Ok(())
        })?;
        Ok((key, secret))
    }

    /// All keys, the oldest first, revoked and expired ones too.
    pub fn keys(&self) -> Result<Vec<ApiKey>> {
        self.read(|tx| {
            let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM keys ORDER BY n"))?;
            let rows = statement.query_map([], decode)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// What a secret is good for. Takes the same time whichever characters are wrong.
    pub fn lookup_key(&self, secret: &str, now: UnixMs) -> Result<Lookup> {
        let hash = hash(secret);
        let found = self.read(|tx| {
            let mut statement = tx.prepare(&format!("SELECT {COLUMNS}, hash FROM keys WHERE prefix = ?1"))?;
            let rows = statement.query_map([&hash[..8]], |r| Ok((decode(r)?, r.get::<_, Vec<u8>>(10)?)))?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        })?;
        let key = found.into_iter().find(|(_, h)| bool::from(h.as_slice().ct_eq(&hash))).map(|(key, _)| key);
        Ok(match key {
            None => Lookup::Unknown,
            Some(key) if key.revoked_at.is_some() => Lookup::Revoked,
            Some(key) if key.expires_at.is_some_and(|at| at <= now) => Lookup::Expired,
            Some(key) => Lookup::Good(key),
        })
    }

    /// Ends a key for good. Doing it again changes nothing.
    pub fn revoke_key(&self, id: &str, now: UnixMs) -> Result<ApiKey> {
        self.write(|tx| {
            tx.execute(
                "UPDATE keys SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1",
                params![id, now],
            )?;
            Ok(by_id(tx, id)?.1)
        })
    }

    /// Tokens used in the periods that hold `now`.
    pub fn usage(&self, id: &str, now: UnixMs) -> Result<Usage> {
        self.read(|tx| usage(tx, by_id(tx, id)?.0, now))
    }

    /// Counts tokens, whatever the quota says, and gives what the periods have now.
    pub fn add_usage(&self, id: &str, tokens: u64, now: UnixMs) -> Result<Usage> {
        self.count(|tx| {
            let n = by_id(tx, id)?.0;
            add(tx, n, tokens, 0, now)?;
            usage(tx, n, now)
        })
    }

    /// Counts tokens ahead if the quota has room for them: what a request may use at most. Requests at the same time
    /// therefore never pass it together. If the program dies before [`Store::settle`], they stay counted.
    pub fn reserve(&self, id: &str, tokens: u64, now: UnixMs) -> Result<Reservation> {
        self.count(|tx| {
            let (n, key) = by_id(tx, id)?;
            let used = usage(tx, n, now)?;
            for (period, quota, used, (_, resets_at)) in [
                (Period::Day, key.quota.tokens_per_day, used.day, time::day(now)),
                (Period::Month, key.quota.tokens_per_month, used.month, time::month(now)),
            ] {
                if let Some(quota) = quota.filter(|q| used.saturating_add(tokens) > *q) {
                    return Err(
                        Error::Quota { key: key.id, period, used, quota, asked: tokens, resets_at }.into()
                    );
                }
            }
            add(tx, n, tokens, 0, now)?;
            Ok(())
        })?;
        Ok(Reservation { key: id.to_owned(), tokens, taken_at: now })
    }

    /// Replaces what was counted ahead by what was used, in the periods of the reservation; gives what they have now.
    pub fn settle(&self, reservation: Reservation, used: u64) -> Result<Usage> {
        let Reservation { key, tokens, taken_at } = reservation;
        self.count(|tx| {
            let n = by_id(tx, &key)?.0;
            add(tx, n, used, tokens, taken_at)?;
            usage(tx, n, taken_at)
        })
    }
}

/// A key as it is asked for, its values checked; id and hint come later.
fn prepared(new: &NewKey, now: UnixMs) -> Result<ApiKey> {
    if new.name.is_empty() || new.name.len() > NAME_BYTES_MAX || new.name.chars().any(char::is_control) {
        return Err(Error::invalid("name", format!("must be one line of 1 to {NAME_BYTES_MAX} bytes")));
    }
    let mut scopes = new.scopes.clone();
    scopes.sort_unstable();
    scopes.dedup();
    if scopes.is_empty() {
        return Err(Error::invalid("scopes", "must have at least one, or the key can do nothing"));
    }
    for (field, value) in
        [("tokens_per_day", new.quota.tokens_per_day), ("tokens_per_month", new.quota.tokens_per_month)]
    {
        if value.is_some_and(|v| i64::try_from(v).is_err()) {
            return Err(Error::invalid(field, format!("must be at most {}, or none for no limit", i64::MAX)));
        }
    }
    if new.requests_per_minute == Some(0) {
        return Err(Error::invalid("requests_per_minute", "must be 1 or more, or none for no limit"));
    }
    if new.expires_at.is_some_and(|at| at <= now) {
        return Err(Error::invalid("expires_at", "must be in the future"));
    }
    Ok(ApiKey {
        id: String::new(),
        hint: String::new(),
        name: new.name.clone(),
        scopes,
        quota: new.quota,
        requests_per_minute: new.requests_per_minute,
        created_at: now,
        expires_at: new.expires_at,
        revoked_at: None,
    })
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn scopes_text(scopes: &[Scope]) -> String {
    let mut out = String::new();
    for s in scopes {
        let _ = write!(out, "{}{}", if out.is_empty() { "" } else { " " }, s.name());
    }
    out
}

const COLUMNS: &str = "id, hint, name, scopes, tokens_per_day, tokens_per_month, requests_per_minute, created_at, \
                       expires_at, revoked_at";

fn decode(r: &Row<'_>) -> rusqlite::Result<ApiKey> {
    let scopes: String = r.get(3)?;
    let scopes = scopes.split(' ').map(str::parse).collect::<Result<_>>().map_err(|e| odd(3, e.into()))?;
    let count = |column| Ok::<_, rusqlite::Error>(r.get::<_, Option<i64>>(column)?.map(|v| v.max(0) as u64));
    Ok(ApiKey {
        id: r.get(0)?,
        hint: r.get(1)?,
        name: r.get(2)?,
        scopes,
        quota: Quota { tokens_per_day: count(4)?, tokens_per_month: count(5)? },
        requests_per_minute: r.get(6)?,
        created_at: r.get(7)?,
        expires_at: r.get(8)?,
        revoked_at: r.get(9)?,
    })
}

fn by_id(tx: &Transaction<'_>, id: &str) -> Result<(i64, ApiKey), Fault> {
    let sql = format!("SELECT {COLUMNS}, n FROM keys WHERE id = ?1");
    let found = tx.query_row(&sql, [id], |r| Ok((r.get(10)?, decode(r)?))).optional()?;
    Ok(found.ok_or_else(|| Error::not_found("key", id))?)
}

/// Adds and takes away in both periods that hold `at`; never below 0.
fn add(tx: &Transaction<'_>, n: i64, more: u64, less: u64, at: UnixMs) -> Result<(), Fault> {
    let clip = |v: u64| v.min(1 << 60) as i64; // what is stored is at most 2^61, so no sum leaves the range
    let (more, less) = (clip(more), clip(less));
    for (period, (begins_at, _)) in [(Period::Day, time::day(at)), (Period::Month, time::month(at))] {
        tx.execute(
            "INSERT INTO usage (key, period, begins_at, tokens) VALUES (?1, ?2, ?3, max(0, ?4 - ?5)) \
             ON CONFLICT DO UPDATE SET tokens = max(0, min(tokens, 1 << 61) + ?4 - ?5)",
            params![n, period.to_string(), begins_at, more, less],
        )?;
    }
    Ok(())
}

fn usage(tx: &Transaction<'_>, n: i64, now: UnixMs) -> Result<Usage, Fault> {
    let read = |period: Period, begins_at: UnixMs| -> Result<u64, Fault> {
        let sql = "SELECT tokens FROM usage WHERE key = ?1 AND period = ?2 AND begins_at = ?3";
        let tokens = tx.query_row(sql, params![n, period.to_string(), begins_at], |r| r.get::<_, i64>(0));
        Ok(tokens.optional()?.unwrap_or(0).max(0) as u64)
    };
    Ok(Usage { day: read(Period::Day, time::day(now).0)?, month: read(Period::Month, time::month(now).0)? })
}

/// Counters and ended keys of long ago; gives how many of each.
pub(crate) fn remove_old(tx: &Transaction<'_>, now: UnixMs) -> rusqlite::Result<(u64, u64)> {
    let before = now.saturating_sub(KEPT_MS);
    let counters = tx.execute("DELETE FROM usage WHERE begins_at < ?1", [before])?;
    let keys = tx.execute("DELETE FROM keys WHERE revoked_at < ?1 OR expires_at < ?1", [before])?;
    Ok((counters as u64, keys as u64))
}
