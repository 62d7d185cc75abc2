//! `quarrel keys`: the API keys of `serve`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use quarrel_store::{Limits, NewKey, Quota, Scope, Store};
use serde_json::json;

use crate::args::{Keys, KeysCommand};
use crate::data::data_dir;
use crate::render::{self, Out};

pub(crate) fn run(args: Keys) -> Result<()> {
    let store = Store::open(&data_dir(args.data)?, Limits::default())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let now = i64::try_from(now.as_millis())?;
    let mut out = Out::new();
    match args.command {
        KeysCommand::Create { name, scope, tokens_per_day, tokens_per_month, requests_per_minute, days } => {
            let scopes: Result<Vec<Scope>, _> = scope.iter().map(|s| s.parse()).collect();
            let new = NewKey {
                name,
                scopes: scopes?,
                quota: Quota { tokens_per_day, tokens_per_month },
                requests_per_minute,
                expires_at: days.map(|d| now + i64::from(d) * 86_400_000),
            };
            let (key, secret) = store.create_key(&new, now)?;
            if args.json {
                let mut value = json!(key);
                value["secret"] = secret.into();
                return out.json(&value);
            }
            out.line(&secret)?;
            render::note(format!("{} ({}); the key is shown only this once", key.id, key.name));
        }
        KeysCommand::List => {
            let keys = store.keys()?;
            if args.json {
                return out.json(&keys);
            }
            let mut rows = vec![
                ["ID", "NAME", "ENDS IN", "SCOPES", "TODAY", "MONTH", "STATE"].map(String::from).to_vec(),
            ];
            for k in keys {
                let used = store.usage(&k.id, now)?;
                let of =
                    |used: u64, most: Option<u64>| most.map_or(used.to_string(), |m| format!("{used}/{m}"));
                let state = match (k.revoked_at, k.expires_at) {
                    (Some(_), _) => "revoked",
                    (None, Some(at)) if at <= now => "expired",
                    _ => "good",
                };
                let scopes: Vec<_> = k.scopes.iter().map(|s| s.name()).collect();
                rows.push(vec![
                    k.id,
                    k.name,
                    k.hint,
                    scopes.join(","),
                    of(used.day, k.quota.tokens_per_day),
                    of(used.month, k.quota.tokens_per_month),
                    state.into(),
                ]);
            }
            out.table(&rows, &[4, 5])?;
        }
        KeysCommand::Revoke { id } => {
            let key = store.revoke_key(&id, now)?;
            if args.json {
                return out.json(&key);
            }
            render::note(format!("{} ({}) is revoked", key.id, key.name));
        }
    }
    Ok(())
}
