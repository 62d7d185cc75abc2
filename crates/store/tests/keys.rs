//! API keys and stored responses through the public interface.

use quarrel_store::*;
use serde_json::json;

const ME: &str = "key_me";
const DAY: i64 = 86_400_000;

fn store() -> (tempfile::TempDir, Store) {
    store_with(Limits::default())
}

fn store_with(limits: Limits) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), limits).unwrap();
    (dir, store)
}

fn kind<T: std::fmt::Debug>(r: Result<T>) -> Kind {
    r.unwrap_err().kind()
}

fn key(name: &str) -> NewKey {
    NewKey { name: name.into(), scopes: vec![Scope::Inference], ..NewKey::default() }
}

#[test]
fn a_secret_opens_its_key_and_is_not_kept() {
    let (dir, store) = store();
    let scopes = vec![Scope::Metrics, Scope::Inference, Scope::Metrics];
    let quota = Quota { tokens_per_day: Some(100), tokens_per_month: Some(i64::MAX as u64) };
    let new =
        NewKey { scopes, quota, requests_per_minute: Some(60), expires_at: Some(5000), ..key("laptop") };
    let (made, secret) = store.create_key(&new, 1000).unwrap();
    let (other, _) = store.create_key(&key("other"), 1001).unwrap();
    assert_eq!((&secret[..3], secret.len(), &secret[42..]), ("qk_", 46, &made.hint[..]));
    assert_eq!(made.scopes, [Scope::Inference, Scope::Metrics]);
    assert!(made.allows(Scope::Metrics) && !made.allows(Scope::Admin) && !made.allows(Scope::Models));
    assert_eq!(store.lookup_key(&secret, 4999).unwrap(), Lookup::Good(made.clone()));
    assert_eq!(store.lookup_key(&secret, 5000).unwrap(), Lookup::Expired);
    let flipped = format!("{}{}", &secret[..45], if secret.ends_with('a') { 'b' } else { 'a' });
    for wrong in ["", "qk_", &secret[..45], &flipped, &format!("{secret} "), &"q".repeat(1 << 20)] {
        assert_eq!(store.lookup_key(wrong, 2000).unwrap(), Lookup::Unknown);
    }
    assert_eq!(store.keys().unwrap(), [made.clone(), other]);
    assert_eq!(store.revoke_key(&made.id, 3000).unwrap().revoked_at, Some(3000));
    assert_eq!(store.revoke_key(&made.id, 4000).unwrap().revoked_at, Some(3000), "the first time counts");
    assert_eq!(store.lookup_key(&secret, 2000).unwrap(), Lookup::Revoked);
    assert_eq!(kind(store.revoke_key("key_none", 1)), Kind::NotFound);
    assert!(!serde_json::to_string(&store.keys().unwrap()).unwrap().contains(&secret));
    for file in ["conversations.db", "conversations.db-wal"] {
        let bytes = std::fs::read(dir.path().join(file)).unwrap();
        assert!(!bytes.windows(20).any(|w| w == &secret.as_bytes()[..20]), "{file}");
    }
}

#[test]
fn keys_that_make_no_sense_are_refused() {
    let (_dir, store) = store();
    let quota = |day, month| Quota { tokens_per_day: day, tokens_per_month: month };
    for (new, field) in [
        (key(""), "name"),
        (key("a\nb"), "name"),
        (key(&"n".repeat(201)), "name"),
        (NewKey { scopes: vec![], ..key("a") }, "scopes"),
        (NewKey { quota: quota(Some(u64::MAX), None), ..key("a") }, "tokens_per_day"),
        (NewKey { quota: quota(None, Some(1 << 63)), ..key("a") }, "tokens_per_month"),
        (NewKey { requests_per_minute: Some(0), ..key("a") }, "requests_per_minute"),
        (NewKey { expires_at: Some(10), ..key("a") }, "expires_at"),
    ] {
        let e = store.create_key(&new, 10).unwrap_err();
        assert!(e.kind() == Kind::Invalid && e.to_string().starts_with(field), "{field}: {e}");
    }
    assert!(store.keys().unwrap().is_empty());
    let admin = store.create_key(&NewKey { scopes: vec![Scope::Admin], ..key("root") }, 1).unwrap().0;
    assert!(Scope::ALL.into_iter().all(|s| admin.allows(s) && s.name().parse::<Scope>().unwrap() == s));
    assert!("root".parse::<Scope>().unwrap_err().to_string().contains("inference, models"));
}

#[test]
fn usage_is_counted_by_day_and_month() {
    let (_dir, store) = store();
    let id = store.create_key(&key("a"), 0).unwrap().0.id;
    let other = store.create_key(&key("b"), 0).unwrap().0.id;
    let at = |id: &str, now| store.usage(id, now).unwrap();
    assert_eq!(at(&id, 0), Usage::default());
    assert_eq!(store.add_usage(&id, 10, 0).unwrap(), Usage { day: 10, month: 10 });
    assert_eq!(store.add_usage(&id, 5, DAY - 1).unwrap(), Usage { day: 15, month: 15 });
    assert_eq!(store.add_usage(&id, 1, 30 * DAY).unwrap(), Usage { day: 1, month: 16 });
    assert_eq!(store.add_usage(&id, 2, 31 * DAY).unwrap(), Usage { day: 2, month: 2 }, "February");
    assert_eq!(at(&id, 5), Usage { day: 15, month: 16 });
    assert_eq!(at(&other, 5), Usage::default());
    for _ in 0..8 {
        store.add_usage(&other, u64::MAX, 0).unwrap();
    }
    assert!(at(&other, 0).day >= 1 << 60, "no sum leaves the range");
    assert_eq!(kind(store.add_usage("key_none", 1, 0)), Kind::NotFound);
    assert_eq!(kind(store.usage("key_none", 0)), Kind::NotFound);
    assert_eq!(store.maintain(400 * DAY).unwrap().counters_removed, 0);
    assert_eq!(store.maintain(400 * DAY + 1).unwrap().counters_removed, 4);
    assert_eq!(at(&id, 31 * DAY), Usage { day: 2, month: 2 });
    // Keys that ended go as long after it, with their counters.
    store.revoke_key(&id, 500 * DAY).unwrap();
    assert_eq!(store.maintain(900 * DAY).unwrap().keys_removed, 0);
    assert_eq!(store.maintain(900 * DAY + 1).unwrap().keys_removed, 1);
    assert_eq!(store.keys().unwrap().iter().map(|k| &k.id).collect::<Vec<_>>(), [&other]);
}

#[test]
fn a_quota_is_never_passed_by_requests_at_once() {
    let (_dir, store) = store();
    let quota = Quota { tokens_per_day: Some(100), tokens_per_month: Some(150) };
    let id = store.create_key(&NewKey { quota, ..key("a") }, 0).unwrap().0.id;
    let taken: usize = std::thread::scope(|s| {
        let tries: Vec<_> =
            (0..8).map(|_| s.spawn(|| (0..5).filter(|_| store.reserve(&id, 7, 5).is_ok()).count())).collect();
        tries.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!((taken, store.usage(&id, 5).unwrap()), (14, Usage { day: 98, month: 98 }));
    let e = store.reserve(&id, 3, 5).unwrap_err();
    assert!(
        matches!(e, Error::Quota { period: Period::Day, used: 98, quota: 100, asked: 3, resets_at: DAY, .. }),
        "{e:?}"
    );
    let rest = store.reserve(&id, 2, 5).unwrap();
    assert_eq!((rest.tokens(), store.settle(rest, 0).unwrap()), (2, Usage { day: 98, month: 98 }));
    // The next day; settled on the third, it counts where it was taken.
    let next = store.reserve(&id, 52, DAY).unwrap();
    assert!(
        matches!(store.reserve(&id, 1, DAY), Err(Error::Quota { period: Period::Month, resets_at, .. }) if resets_at == 31 * DAY)
    );
    assert_eq!(store.settle(next, 60).unwrap(), Usage { day: 60, month: 158 }, "more than was counted ahead");
    assert_eq!(kind(store.reserve(&id, 0, DAY)), Kind::Quota);
    assert_eq!(store.usage(&id, 2 * DAY).unwrap(), Usage { day: 0, month: 158 });
    assert_eq!(kind(store.reserve(&id, u64::MAX, 40 * DAY)), Kind::Quota);
}

fn response(previous: Option<&str>, n: usize) -> NewResponse {
    NewResponse {
        id: new_response_id().unwrap(),
        previous: previous.map(str::to_owned),
        model: "tiny".into(),
        input: vec![json!({"role": "user", "content": format!("question {n}")})],
        output: vec![json!({"type": "reasoning"}), json!({"type": "message", "text": format!("answer {n}")})],
        settings: json!({"temperature": 0.5, "instructions": null}),
        ttl_ms: 1000,
    }
}

#[test]
fn responses_chain_in_order() {
    let (_dir, store) = store();
    let mut previous: Option<String> = None;
    let mut all = Vec::new();
    for n in 0..5 {
        let new = response(previous.as_deref(), n);
        store.put_response(ME, &new, n as i64).unwrap();
        previous = Some(new.id.clone());
        all.push(new);
    }
    let last = &all[4].id;
    let chain = store.chain(ME, last, 10).unwrap();
    assert_eq!(chain.ids, all.iter().map(|r| r.id.clone()).collect::<Vec<_>>());
    assert_eq!(
        chain.items,
        all.iter().flat_map(|r| [r.input.clone(), r.output.clone()].concat()).collect::<Vec<_>>()
    );
    let read = store.response(ME, last, 10).unwrap();
    assert_eq!(
        (&read.input, &read.output, &read.settings),
        (&all[4].input, &all[4].output, &all[4].settings)
    );
    assert_eq!((read.created_at, read.expires_at, read.previous), (4, 1004, Some(all[3].id.clone())));
    // A branch from the middle, another owner, an id twice.
    let branch = response(Some(&all[1].id), 9);
    store.put_response(ME, &branch, 5).unwrap();
    assert_eq!(
        store.chain(ME, &branch.id, 5).unwrap().ids,
        [&all[0].id, &all[1].id, &branch.id].map(String::clone)
    );
    for answer in [
        kind(store.response("key_other", last, 5)),
        kind(store.chain("key_other", last, 5)),
        kind(store.delete_response("key_other", last)),
        kind(store.put_response("key_other", &response(Some(last), 1), 5)),
        kind(store.put_response(ME, &response(Some("resp_none"), 1), 5)),
    ] {
        assert_eq!(answer, Kind::NotFound);
    }
    assert_eq!(kind(store.put_response(ME, &all[0], 5)), Kind::Conflict);
    assert_eq!(kind(store.put_response("key_other", &all[0], 5)), Kind::Conflict);
    store.delete_response(ME, &all[2].id).unwrap();
    let e = store.chain(ME, last, 5).unwrap_err();
    assert!(e.kind() == Kind::NotFound && e.to_string().contains(&all[2].id), "{e}");
    assert_eq!(store.delete_all(ME).unwrap(), 5);
    assert_eq!(kind(store.response(ME, last, 5)), Kind::NotFound);
}

#[test]
fn responses_expire_but_never_under_a_live_one() {
    let (_dir, store) = store();
    let (old, alone) = (response(None, 0), response(None, 1));
    store.put_response(ME, &old, 0).unwrap();
    store.put_response(ME, &alone, 0).unwrap();
    let new = response(Some(&old.id), 2);
    store.put_response(ME, &new, 900).unwrap();
    assert_eq!(kind(store.response(ME, &alone.id, 1000)), Kind::NotFound, "before it is removed, too");
    assert_eq!(store.maintain(1000).unwrap().responses_removed, 1);
    assert_eq!(store.chain(ME, &new.id, 1899).unwrap().ids.len(), 2);
    assert_eq!(kind(store.put_response(ME, &response(Some(&old.id), 3), 1900)), Kind::NotFound);
    assert_eq!(store.maintain(1900).unwrap().responses_removed, 2);
    assert_eq!(
        kind(store.put_response(ME, &NewResponse { ttl_ms: 0, ..response(None, 0) }, 0)),
        Kind::Invalid
    );
    assert_eq!(
        kind(store.put_response(ME, &NewResponse { id: "x".into(), ..response(None, 0) }, 0)),
        Kind::Invalid
    );
    store.put_response(ME, &NewResponse { ttl_ms: i64::MAX, ..response(None, 0) }, i64::MAX - 1).unwrap();
}

#[test]
fn limits_of_responses_hold() {
    let limits =
        Limits { response_chain: 3, responses_per_owner: 5, conversation_bytes: 1000, ..Limits::default() };
    let (_dir, store) = store_with(limits);
    let mut last: Option<String> = None;
    for n in 0..3 {
        let new = response(last.as_deref(), n);
        store.put_response(ME, &new, 0).unwrap();
        last = Some(new.id);
    }
    let e = store.put_response(ME, &response(last.as_deref(), 4), 0).unwrap_err();
    assert!(matches!(e, Error::Full { what: "responses of a chain", limit: 3 }), "{e:?}");
    let mut big = response(None, 5);
    big.output = vec![json!("x".repeat(700))];
    store.put_response(ME, &big, 0).unwrap();
    store.put_response(ME, &response(Some(&big.id), 6), 0).unwrap();
    let e = store.put_response(ME, &response(None, 7), 0).unwrap_err();
    assert!(matches!(e, Error::Full { what: "stored responses of one owner", limit: 5 }), "{e:?}");
    let two = NewResponse { previous: Some(big.id.clone()), id: new_response_id().unwrap(), ..big.clone() };
    assert!(matches!(store.put_response(ME, &two, 0), Err(Error::Full { what: "bytes of a chain", .. })));
    big.output = vec![json!("x".repeat(1000))];
    assert_eq!(kind(store.put_response(ME, &big, 0)), Kind::TooLarge);
}
