//! Random changes by two owners, against the same changes to plain lists in memory.

use proptest::prelude::*;
use quarrel_store::*;

const OWNERS: [&str; 2] = ["key_a", "key_b"];

/// One change; numbers choose among what there is at that moment.
#[derive(Debug, Clone)]
enum Change {
    Create { owner: usize },
    Append { conversation: usize, place: u8, at: usize, texts: Vec<u8> },
    Remove { conversation: usize, at: usize },
    Rename { conversation: usize, title: u8 },
    Delete { conversation: usize },
    Summarise { conversation: usize, at: usize },
    Reopen,
}

fn change() -> impl Strategy<Value = Change> {
    use Change::*;
    let n = 0usize..8;
    prop_oneof![
        2 => (0usize..2).prop_map(|owner| Create { owner }),
        6 => (n.clone(), 0u8..4, n.clone(), prop::collection::vec(0u8..5, 0..4))
            .prop_map(|(conversation, place, at, texts)| Append { conversation, place, at, texts }),
        2 => (n.clone(), n.clone()).prop_map(|(conversation, at)| Remove { conversation, at }),
        1 => (n.clone(), 0u8..5).prop_map(|(conversation, title)| Rename { conversation, title }),
        1 => n.clone().prop_map(|conversation| Delete { conversation }),
        1 => (n.clone(), n).prop_map(|(conversation, at)| Summarise { conversation, at }),
        1 => Just(Reopen),
    ]
}

fn word(n: u8) -> String {
    ["apple", "bread", "cheese", "dill", "egg"][usize::from(n)].to_owned()
}

/// A conversation as it should be.
#[derive(Debug)]
struct Known {
    owner: usize,
    id: String,
    title: String,
    updated_at: i64,
    messages: Vec<(String, String)>,
    summary: Option<String>,
}

impl Known {
    fn cut(&mut self, at: usize) {
        self.messages.truncate(at);
        let ids: Vec<&String> = self.messages.iter().map(|m| &m.0).collect();
        self.summary = self.summary.take().filter(|up_to| ids.contains(&up_to));
    }
}

fn apply(store: &Store, all: &mut Vec<Known>, change: &Change, now: i64) {
    let count = all.len();
    let (Change::Append { conversation, .. }
    | Change::Remove { conversation, .. }
    | Change::Rename { conversation, .. }
    | Change::Delete { conversation }
    | Change::Summarise { conversation, .. }) = change
    else {
        if let Change::Create { owner } = change {
            let made = store.create(OWNERS[*owner], &NewConversation::default(), now).unwrap();
            let (title, messages) = (String::new(), Vec::new());
            all.push(Known { owner: *owner, id: made.id, title, updated_at: now, messages, summary: None });
        }
        return;
    };
    if count == 0 {
        return;
    }
    let which = conversation % count;
    let known = &mut all[which];
    let (owner, id) = (OWNERS[known.owner], known.id.clone());
    let pick =
        |at: usize, known: &Known| known.messages.get(at).map_or("msg_none".to_owned(), |m| m.0.clone());
    match change {
        Change::Append { place, at, texts, .. } => {
            let new: Vec<NewMessage> = texts.iter().map(|t| NewMessage::text(Role::User, word(*t))).collect();
            let chosen = pick(*at, known);
            let place = [Place::End, Place::First, Place::After(&chosen), Place::InsteadOf(&chosen)]
                [usize::from(*place)];
            let last = known.messages.last().map(|m| m.0.clone());
            let expected = match place {
                Place::End => None,
                Place::First => last.is_some().then_some(Kind::Conflict),
                Place::After(id) => (last.as_deref() != Some(id)).then_some(Kind::Conflict),
                Place::InsteadOf(_) => (*at >= known.messages.len()).then_some(Kind::NotFound),
            };
            let result = store.append(owner, &id, place, &new, now);
            assert_eq!(result.as_ref().err().map(Error::kind), expected);
            let Ok(stored) = result else { return };
            if matches!(place, Place::InsteadOf(_)) {
                known.cut(*at);
            }
            if let (true, Some(first)) = (known.title.is_empty(), texts.first()) {
                known.title = word(*first);
            }
            known.messages.extend(stored.into_iter().zip(texts).map(|(m, t)| (m.id, word(*t))));
            known.updated_at = now;
        }
        Change::Remove { at, .. } => {
            let result = store.remove_from(owner, &id, &pick(*at, known), now);
            if *at >= known.messages.len() {
                assert_eq!(result.unwrap_err().kind(), Kind::NotFound);
                return;
            }
            assert_eq!(result.unwrap(), (known.messages.len() - at) as u64);
            known.cut(*at);
            known.updated_at = now;
        }
        Change::Rename { title, .. } => {
            known.title = word(*title);
            known.updated_at = now;
            store.rename(owner, &id, &known.title, now).unwrap();
        }
        Change::Delete { .. } => {
            store.delete(owner, &id).unwrap();
            all.remove(which);
        }
        Change::Summarise { at, .. } => {
            let up_to = pick(*at, known);
            let place = |id: &String| known.messages.iter().position(|m| m.0 == *id);
            let expected = match (place(&up_to), known.summary.as_ref().and_then(place)) {
                (None, _) => Some(Kind::NotFound),
                (Some(new), Some(old)) if old > new => Some(Kind::Conflict),
                _ => None,
            };
            let summary = Summary { text: "so far".into(), up_to: up_to.clone(), tokens: 2 };
            let result = store.set_summary(owner, &id, &summary);
            assert_eq!(result.err().map(|e| e.kind()), expected);
            if expected.is_none() {
                known.summary = Some(up_to);
            }
        }
        Change::Create { .. } | Change::Reopen => {}
    }
}

fn compare(store: &Store, all: &[Known]) {
    let words: Vec<String> = (0..5).map(word).collect();
    for (n, owner) in OWNERS.iter().enumerate() {
        let mut own: Vec<&Known> = all.iter().filter(|k| k.owner == n).collect();
        own.sort_by(|a, b| (b.updated_at, &b.id).cmp(&(a.updated_at, &a.id)));
        let listed = |search: Option<&str>| {
            let page = store.list(owner, &ListQuery { search, cursor: None, limit: 200 }).unwrap();
            page.conversations.into_iter().map(|c| c.id).collect::<Vec<_>>()
        };
        assert_eq!(listed(None), own.iter().map(|k| k.id.clone()).collect::<Vec<_>>());
        for word in &words {
            let has = |k: &&&Known| k.title == *word || k.messages.iter().any(|m| m.1 == *word);
            let expected: Vec<String> = own.iter().filter(has).map(|k| k.id.clone()).collect();
            assert_eq!(listed(Some(word)), expected, "{word}");
        }
        for known in own {
            let read = store.conversation(owner, &known.id).unwrap();
            let messages: Vec<_> =
                read.messages.iter().map(|m| (m.id.clone(), m.body.plain_text())).collect();
            assert_eq!(messages, known.messages);
            assert_eq!((&read.info.title, read.info.updated_at), (&known.title, known.updated_at));
            assert_eq!(read.info.messages as usize, messages.len());
            assert_eq!(read.info.last_message, messages.last().map(|m| m.0.clone()));
            assert_eq!(read.summary.map(|s| s.up_to), known.summary);
            let stranger = store.conversation(OWNERS[1 - n], &known.id).unwrap_err();
            assert_eq!(stranger.kind(), Kind::NotFound);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) })]

    #[test]
    fn the_store_does_what_lists_would_do(changes in prop::collection::vec(change(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(dir.path(), Limits::default()).unwrap();
        let (mut store, mut all) = (open(), Vec::new());
        for (now, change) in changes.iter().enumerate() {
            if matches!(change, Change::Reopen) {
                drop(store);
                store = open();
            }
            apply(&store, &mut all, change, now as i64 / 3);
            compare(&store, &all);
        }
        store.check().unwrap();
    }
}
