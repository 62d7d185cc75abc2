//! Conversations and messages through the public interface: order, isolation, search, limits, summaries.

use quarrel_store::*;
use serde_json::json;

const ME: &str = "key_me";

fn store() -> (tempfile::TempDir, Store) {
    store_with(Limits::default())
}

fn store_with(limits: Limits) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), limits).unwrap();
    (dir, store)
}

fn user(text: &str) -> NewMessage {
    NewMessage::text(Role::User, text)
}

fn kind<T: std::fmt::Debug>(r: Result<T>) -> Kind {
    r.unwrap_err().kind()
}

fn new(store: &Store, owner: &str, title: &str, now: UnixMs) -> String {
    store.create(owner, &NewConversation { title: title.into(), metadata: None }, now).unwrap().id
}

fn titles(store: &Store, owner: &str, search: &str) -> Vec<String> {
    let page = store.list(owner, &ListQuery { search: Some(search), cursor: None, limit: 50 }).unwrap();
    page.conversations.into_iter().map(|c| c.title).collect()
}

#[test]
fn a_conversation_comes_back_as_it_was() {
    let (dir, store) = store();
    let metadata = Some(json!({"model": "tiny", "preset": "precise"}));
    let c = store.create(ME, &NewConversation { title: String::new(), metadata }, 1000).unwrap();
    let mut call = NewMessage::text(Role::Assistant, "");
    call.content = json!(null);
    call.reasoning = Some("hm".into());
    call.tool_calls =
        Some(json!([{"id": "c1", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":2}"}}]));
    call.model = Some("tiny".into());
    call.tokens = Some(u32::MAX);
    call.metadata = Some(json!({"finish": "tool_calls"}));
    let mut result = user("42");
    (result.role, result.tool_call_id) = (Role::Tool, Some("c1".into()));
    let mut parts = user("");
    parts.content = json!([{"type": "text", "text": "What\u{0} is it? 🦀"}, {"type": "image_url", "image_url": {"url": "data:"}}]);
    let bodies =
        [parts, call, result, NewMessage::text(Role::Developer, "\n"), NewMessage::text(Role::System, "")];
    let stored = store.append(ME, &c.id, Place::First, &bodies, 2000).unwrap();
    assert_eq!(stored.iter().map(|m| m.body.clone()).collect::<Vec<_>>(), bodies);
    drop(store);

    let store = Store::open(dir.path(), Limits::default()).unwrap();
    let read = store.conversation(ME, &c.id).unwrap();
    assert_eq!(read.messages, stored);
    assert_eq!(read.info.metadata, c.metadata);
    assert_eq!((read.info.created_at, read.info.updated_at, read.info.messages), (1000, 2000, 5));
    assert_eq!(read.info.last_message.as_deref(), Some(&stored[4].id[..]));
    assert_eq!(read.info.title, "What\u{0} is it? 🦀".replace('\u{0}', " "), "the first text of the user");
    assert_eq!(store.messages(ME, &c.id, Some(&stored[1].id), 2).unwrap(), stored[2..4]);
    assert_eq!(store.messages(ME, &c.id, None, u64::MAX).unwrap(), stored);
    assert_eq!(store.export_json(ME, &c.id).unwrap()["messages"], serde_json::to_value(&stored).unwrap());
    assert!(store.export_markdown(ME, &c.id).unwrap().contains("is it? 🦀"));
    store.check().unwrap();
}

#[test]
fn writers_do_not_interleave_silently() {
    let (_dir, store) = store();
    let c = new(&store, ME, "t", 1);
    let first = store.append(ME, &c, Place::First, &[user("a"), user("b")], 2).unwrap();
    let last = first[1].id.clone();
    for place in [Place::First, Place::After(&first[0].id), Place::After("msg_none"), Place::After("")] {
        let e = store.append(ME, &c, place, &[user("x")], 3).unwrap_err();
        assert_eq!(e.kind(), Kind::Conflict);
        assert!(e.to_string().contains(&last), "{e}");
    }
    assert_eq!(store.info(ME, &c).unwrap().messages, 2);
    let third = store.append(ME, &c, Place::After(&last), &[user("c")], 3).unwrap().remove(0).id;
    assert_eq!(kind(store.append(ME, &c, Place::After(&last), &[user("other")], 3)), Kind::Conflict);
    store.append(ME, &c, Place::End, &[user("d")], 4).unwrap();
    // An edit: the message and all after it go, and the new one comes, or nothing happens.
    assert_eq!(kind(store.append(ME, &c, Place::InsteadOf("msg_none"), &[user("x")], 5)), Kind::NotFound);
    store.append(ME, &c, Place::InsteadOf(&last), &[user("B")], 5).unwrap();
    let texts = |c| {
        store.conversation(ME, c).unwrap().messages.iter().map(|m| m.body.plain_text()).collect::<String>()
    };
    assert_eq!(texts(&c), "aB");
    assert_eq!(kind(store.remove_from(ME, &c, &third, 6)), Kind::NotFound);
    assert_eq!(store.remove_from(ME, &c, &first[0].id, 6).unwrap(), 2);
    assert_eq!(store.info(ME, &c).unwrap().last_message, None);
    store.append(ME, &c, Place::First, &[], 7).unwrap();
    store.check().unwrap();
}

#[test]
fn lists_are_newest_first_and_paged() {
    let (_dir, store) = store();
    // Several with the same time, so that the id has to decide.
    let mut ids: Vec<(i64, String)> = (0..25).map(|i| (i / 5, new(&store, ME, "t", i / 5))).collect();
    new(&store, "key_other", "t", 9);
    ids.sort();
    ids.reverse();
    for limit in [1, 4, 5, 24, 25, 26, 200] {
        let (mut found, mut cursor, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = store.list(ME, &ListQuery { search: None, cursor: cursor.as_deref(), limit }).unwrap();
            found.extend(page.conversations.into_iter().map(|c| (c.updated_at, c.id)));
            pages += 1;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(found, ids, "limit {limit}");
        assert_eq!(pages, 25u32.div_ceil(limit), "limit {limit}");
    }
    // A change brings one to the front; a deleted cursor still works.
    let page = store.list(ME, &ListQuery { limit: 3, ..ListQuery::default() }).unwrap();
    store.delete(ME, &page.conversations[2].id).unwrap();
    store.rename(ME, &ids[24].1, "up", 100).unwrap();
    let rest = store.list(ME, &ListQuery { cursor: page.next.as_deref(), limit: 200, search: None }).unwrap();
    assert_eq!(rest.conversations.len(), 21);
    assert_eq!(
        store.list(ME, &ListQuery { limit: 1, ..ListQuery::default() }).unwrap().conversations[0].title,
        "up"
    );
    for cursor in ["", "x", "1", "x.conv_1", "99999999999999999999.a"] {
        let query = ListQuery { cursor: Some(cursor), limit: 5, search: None };
        assert_eq!(kind(store.list(ME, &query)), Kind::Invalid, "{cursor:?}");
    }
    for limit in [0, 201, u32::MAX] {
        assert_eq!(kind(store.list(ME, &ListQuery { limit, ..ListQuery::default() })), Kind::Invalid);
    }
}

#[test]
fn search_finds_words_in_titles_and_messages() {
    let (_dir, store) = store();
    let bread = new(&store, ME, "Baking bread", 1);
    store
        .append(ME, &bread, Place::First, &[user("How long does the dough rest?"), user("Crème brûlée")], 2)
        .unwrap();
    let trip = new(&store, ME, "A trip", 3);
    let sent = store
        .append(ME, &trip, Place::First, &[user("從東京到京都"), user("rest in Kyoto; 50% OR \"NEAR\"")], 4)
        .unwrap();
    for (search, expected) in [
        ("bread", &["Baking bread"][..]),
        ("BREA", &["Baking bread"]),
        ("rest", &["A trip", "Baking bread"]),
        ("rest dough", &["Baking bread"]),
        ("dough kyoto", &[]),
        ("creme brul", &["Baking bread"]),
        ("京到", &["A trip"]),
        ("大阪", &[]),
        ("%", &["A trip"]),
        ("50%", &["A trip"]),
        ("\"near\" OR", &["A trip"]),
        ("title:bread", &[]),
        ("brea* )", &["Baking bread"]),
        ("x' OR '1'='1", &[]),
        ("", &["A trip", "Baking bread"]),
        ("  ", &["A trip", "Baking bread"]),
    ] {
        assert_eq!(titles(&store, ME, search), expected, "{search:?}");
        assert!(titles(&store, "key_other", search).is_empty(), "{search:?}");
    }
    let long = "a".repeat(2000);
    let query = ListQuery { search: Some(&long), cursor: None, limit: 1 };
    assert_eq!(kind(store.list(ME, &query)), Kind::TooLarge);
    // The index follows every change.
    store.rename(ME, &bread, "Loaves", 5).unwrap();
    store.remove_from(ME, &trip, &sent[1].id, 6).unwrap();
    assert_eq!(titles(&store, ME, "bread"), [""; 0]);
    assert_eq!(titles(&store, ME, "loaves"), ["Loaves"]);
    assert_eq!(titles(&store, ME, "kyoto"), [""; 0]);
    store.delete(ME, &bread).unwrap();
    assert_eq!(titles(&store, ME, "dough"), [""; 0]);
    store.check().unwrap();
}

#[test]
fn deleted_words_are_gone_from_the_file() {
    let (dir, store) = store();
    let c = new(&store, ME, "t", 1);
    let body = format!("{} xylophonist", "filler words ".repeat(2000));
    store.append(ME, &c, Place::First, &[user(&body)], 2).unwrap();
    let holds = || {
        let bytes = std::fs::read(dir.path().join("conversations.db")).unwrap();
        bytes.windows(11).any(|w| w == b"xylophonist")
    };
    drop(store); // the last connection writes the log into the file
    assert!(holds());
    let store = Store::open(dir.path(), Limits::default()).unwrap();
    let other = new(&store, ME, "t", 3);
    store.append(ME, &other, Place::First, &[user("other words")], 4).unwrap();
    store.delete(ME, &c).unwrap();
    store.maintain(5).unwrap();
    drop(store);
    assert!(!holds());
}

#[test]
fn another_owners_things_do_not_exist() {
    let (_dir, store) = store();
    let c = new(&store, ME, "secret", 1);
    let m = store.append(ME, &c, Place::First, &[user("secret")], 2).unwrap().remove(0).id;
    let mine = new(&store, "key_other", "mine", 3);
    let before = store.conversation(ME, &c).unwrap();
    let o = "key_other";
    let summary = Summary { text: "s".into(), up_to: m.clone(), tokens: 1 };
    let answers = [
        kind(store.info(o, &c)),
        kind(store.conversation(o, &c)),
        kind(store.messages(o, &c, None, 9)),
        kind(store.append(o, &c, Place::End, &[user("x")], 4)),
        kind(store.append(o, &mine, Place::InsteadOf(&m), &[], 4)),
        kind(store.remove_from(o, &c, &m, 4)),
        kind(store.remove_from(o, &mine, &m, 4)),
        kind(store.rename(o, &c, "x", 4)),
        kind(store.set_metadata(o, &c, None, 4)),
        kind(store.set_summary(o, &c, &summary)),
        kind(store.set_summary(o, &mine, &summary)),
        kind(store.export_json(o, &c)),
        kind(store.export_markdown(o, &c)),
        kind(store.delete(o, &c)),
    ];
    assert!(answers.iter().all(|k| *k == Kind::NotFound), "{answers:?}");
    // The words are the same as for an id that nobody has.
    let line = |id: &str| store.info(o, id).unwrap_err().to_string().replace(id, "ID");
    assert_eq!(line(&c), line("conv_none"));
    assert_eq!(store.delete_all(o).unwrap(), 1);
    assert_eq!(store.conversation(ME, &c).unwrap(), before);
    for owner in ["", &"o".repeat(129)] {
        assert_eq!(kind(store.create(owner, &NewConversation::default(), 1)), Kind::Invalid);
    }
}

#[test]
fn limits_hold_and_leave_everything_as_it_was() {
    let limits = Limits {
        message_bytes: 100,
        messages_per_conversation: 3,
        conversation_bytes: 600,
        conversations_per_owner: 2,
        ..Limits::default()
    };
    let (_dir, store) = store_with(limits);
    let c = new(&store, ME, "t", 1);
    new(&store, ME, "t", 1);
    assert_eq!(kind(store.create(ME, &NewConversation::default(), 2)), Kind::Full);
    new(&store, "key_other", "t", 1);
    store.append(ME, &c, Place::First, &[user(&"é".repeat(50))], 3).unwrap();
    let mut reasons = user("");
    reasons.reasoning = Some("r".repeat(101));
    let mut calls = user("");
    calls.tool_calls = Some(json!(["c".repeat(101)]));
    for big in [user(&"x".repeat(101)), reasons, calls] {
        assert_eq!(kind(store.append(ME, &c, Place::End, &[user("small"), big], 4)), Kind::TooLarge);
    }
    assert_eq!(kind(store.append(ME, &c, Place::End, &[user(""), user(""), user("")], 4)), Kind::Full);
    assert_eq!(store.info(ME, &c).unwrap().messages, 1);
    let two = [user(&"x".repeat(100)), user(&"x".repeat(100))];
    assert_eq!(kind(store.append(ME, &c, Place::End, &two, 4)), Kind::Full, "3 x (100 + 128) bytes");
    let all = store.append(ME, &c, Place::End, &two[..1], 4).unwrap();
    store.append(ME, &c, Place::InsteadOf(&all[0].id), &two[..1], 5).unwrap();
    let title = |title: String| kind(store.rename(ME, &c, &title, 6));
    assert_eq!(title("t".repeat(1025)), Kind::TooLarge);
    assert_eq!(title("a\nb".into()), Kind::Invalid);
    let metadata = json!("m".repeat(20_000));
    assert_eq!(kind(store.set_metadata(ME, &c, Some(&metadata), 6)), Kind::TooLarge);
    let summary = Summary { text: "s".repeat(101), up_to: all[0].id.clone(), tokens: 1 };
    assert_eq!(kind(store.set_summary(ME, &c, &summary)), Kind::TooLarge);
}

#[test]
fn a_full_store_says_so_and_can_delete() {
    let (_dir, store) = store_with(Limits { store_bytes: 1 << 20, ..Limits::default() });
    let c = new(&store, ME, "t", 1);
    let text = user(&"some words of a long talk ".repeat(400));
    let mut stored = 0;
    let e = loop {
        match store.append(ME, &c, Place::End, std::slice::from_ref(&text), 2) {
            Ok(_) => stored += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(e.kind(), Kind::Full, "{e}");
    assert!(stored > 20, "{stored}");
    assert!(store.bytes().unwrap() <= 1 << 20);
    assert_eq!(store.info(ME, &c).unwrap().messages, stored);
    store.delete(ME, &c).unwrap();
    let freed = store.maintain(3).unwrap().bytes_freed;
    assert!(freed > 300_000, "{freed}");
    let c = new(&store, ME, "t", 4);
    store.append(ME, &c, Place::First, &[text], 5).unwrap();
    store.check().unwrap();
}

#[test]
fn a_summary_lives_as_long_as_what_it_covers() {
    let (_dir, store) = store();
    let c = new(&store, ME, "t", 1);
    let m: Vec<String> = store
        .append(ME, &c, Place::First, &[user("a"), user("b"), user("c"), user("d")], 2)
        .unwrap()
        .into_iter()
        .map(|m| m.id)
        .collect();
    let summary = |i: usize| Summary { text: format!("up to {i}"), up_to: m[i].clone(), tokens: 3 };
    store.set_summary(ME, &c, &summary(1)).unwrap();
    store.set_summary(ME, &c, &summary(2)).unwrap();
    assert_eq!(kind(store.set_summary(ME, &c, &summary(0))), Kind::Conflict);
    assert_eq!(store.conversation(ME, &c).unwrap().summary, Some(summary(2)));
    store.remove_from(ME, &c, &m[3], 3).unwrap();
    assert_eq!(store.conversation(ME, &c).unwrap().summary, Some(summary(2)));
    store.append(ME, &c, Place::InsteadOf(&m[2]), &[user("C")], 4).unwrap();
    assert_eq!(store.conversation(ME, &c).unwrap().summary, None);
    assert_eq!(kind(store.set_summary(ME, &c, &summary(2))), Kind::NotFound);
}

#[test]
fn time_that_goes_back_changes_no_order() {
    let (_dir, store) = store();
    let c = new(&store, ME, "t", 100);
    store.append(ME, &c, Place::First, &[user("a")], 50).unwrap();
    assert_eq!(store.info(ME, &c).unwrap().updated_at, 100);
}
