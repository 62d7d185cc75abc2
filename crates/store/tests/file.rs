//! The file itself: kill -9, two processes, damage, strangers' databases, later versions, permissions.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use quarrel_store::*;

const DIR: &str = "QUARREL_STORE_TEST_DIR";
const ME: &str = "key_me";

fn open(dir: &Path) -> Result<Store> {
    Store::open(dir, Limits::default())
}

fn text(s: &str) -> NewMessage {
    NewMessage::text(Role::User, s)
}

/// Starts this program again to run one of the tests below that are children.
fn child(name: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn acknowledge(id: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nack {id}").unwrap();
    out.flush().unwrap();
}

fn acknowledged(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // A line that was cut by the kill is no acknowledgement: only ids of full length are.
    lines
        .map_while(Result::ok)
        .filter_map(|l| l.strip_prefix("ack ").filter(|l| l.len() >= 28).map(str::to_owned))
}

/// Appends behind the last message, again and again; says each id once it is stored.
fn append_forever(count: usize) {
    let dir = std::env::var(DIR).expect("started by another test");
    let store = open(Path::new(&dir)).unwrap();
    let c =
        store.list(ME, &ListQuery { limit: 1, ..ListQuery::default() }).unwrap().conversations.remove(0).id;
    let mut done = 0;
    while done < count {
        let last = store.info(ME, &c).unwrap().last_message;
        let place = last.as_deref().map_or(Place::First, Place::After);
        let pair =
            [text(&format!("question {done} {}", "of some length ".repeat(done % 50))), text("answer")];
        match store.append(ME, &c, place, &pair, done as i64) {
            Ok(stored) => {
                stored.iter().for_each(|m| acknowledge(&m.id));
                done += 1;
            }
            Err(e) if e.kind() == Kind::Conflict => {}
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
#[ignore = "the child of the test below"]
fn child_appends_until_killed() {
    append_forever(usize::MAX);
}

#[test]
fn a_killed_writer_loses_nothing_it_acknowledged() {
    for (round, acks_before_kill) in [2, 50, 301].into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let c = open(dir.path()).unwrap().create(ME, &NewConversation::default(), 0).unwrap().id;
        let mut child = child("child_appends_until_killed", dir.path());
        let mut lines = acknowledged(&mut child);
        let mut acks: Vec<String> = lines.by_ref().take(acks_before_kill).collect();
        child.kill().unwrap(); // SIGKILL
        acks.extend(lines);
        child.wait().unwrap();
        assert!(acks.len() >= acks_before_kill);

        let store = open(dir.path()).unwrap();
        let messages = store.conversation(ME, &c).unwrap().messages;
        let ids: Vec<&String> = messages.iter().map(|m| &m.id).collect();
        assert_eq!(ids[..acks.len()], acks.iter().collect::<Vec<_>>(), "round {round}");
        // At most what was being written is there beside it, and never half of a pair.
        assert!(
            messages.len().is_multiple_of(2) && messages.len() <= acks.len() + 3,
            "{} of {}",
            messages.len(),
            acks.len()
        );
        store.check().unwrap();
        store.append(ME, &c, Place::After(&messages[messages.len() - 1].id), &[text("on")], 1).unwrap();
    }
}

#[test]
#[ignore = "the child of the test below"]
fn child_appends_twenty() {
    append_forever(20);
}

#[test]
fn two_processes_share_a_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let c = open(dir.path()).unwrap().create(ME, &NewConversation::default(), 0).unwrap().id;
    let mut children = [child("child_appends_twenty", dir.path()), child("child_appends_twenty", dir.path())];
    let acks: Vec<Vec<String>> = children.iter_mut().map(|c| acknowledged(c).collect()).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let messages = open(dir.path()).unwrap().conversation(ME, &c).unwrap().messages;
    assert_eq!(messages.len(), 80);
    for acks in acks {
        // Each process's own are there in its order, a question always before its answer.
        let own: Vec<usize> =
            acks.iter().map(|a| messages.iter().position(|m| m.id == *a).unwrap()).collect();
        assert_eq!(own.len(), 40);
        assert!(own.is_sorted() && own.chunks(2).all(|p| p[0] + 1 == p[1]), "{own:?}");
    }
}

#[test]
#[ignore = "the child of the test below"]
fn child_opens() {
    let store = open(Path::new(&std::env::var(DIR).unwrap())).unwrap();
    acknowledge(&store.create(ME, &NewConversation::default(), 0).unwrap().id);
}

#[test]
fn many_may_make_the_same_new_store() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("a").join("b");
    let mut children: Vec<Child> = (0..6).map(|_| child("child_opens", &new)).collect();
    let ids: Vec<String> = children.iter_mut().flat_map(|c| acknowledged(c).collect::<Vec<_>>()).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(ids.len(), 6);
    let store = open(&new).unwrap();
    assert!(ids.iter().all(|id| store.info(ME, id).is_ok()));
    store.check().unwrap();
}

#[test]
fn threads_of_one_process_share_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()).unwrap(), open(dir.path()).unwrap());
    std::thread::scope(|s| {
        for store in [&one, &one, &two, &two] {
            s.spawn(move || {
                for _ in 0..10 {
                    let c = store.create(ME, &NewConversation::default(), 0).unwrap().id;
                    store.append(ME, &c, Place::First, &[text("hello")], 1).unwrap();
                    store.list(ME, &ListQuery { search: Some("hello"), limit: 5, cursor: None }).unwrap();
                }
            });
        }
    });
    let found = one.list(ME, &ListQuery { limit: 200, ..ListQuery::default() }).unwrap().conversations;
    assert_eq!(found.len(), 40);
    assert!(found.iter().all(|c| c.messages == 1));
}

/// A closed store with a hundred kilobytes or more in it.
fn written(dir: &Path) -> std::path::PathBuf {
    let store = open(dir).unwrap();
    for i in 0..20 {
        let c = store.create(ME, &NewConversation::default(), i).unwrap().id;
        store.append(ME, &c, Place::First, &[text(&format!("word{i} ").repeat(600))], i).unwrap();
    }
    store.path().to_owned()
}

/// Everything that a server would do with a store, damaged as it may be.
fn use_it(dir: &Path) -> Result<()> {
    let store = open(dir)?;
    let found = store.list(ME, &ListQuery { limit: 200, ..ListQuery::default() })?;
    for c in &found.conversations {
        store.conversation(ME, &c.id)?;
        store.append(ME, &c.id, Place::End, &[text("more words")], 1)?;
    }
    store.list(ME, &ListQuery { limit: 200, search: Some("word3"), cursor: None })?;
    store.keys()?;
    store.maintain(1)?;
    store.check()
}

#[test]
fn a_damaged_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let good = std::fs::read(&path).unwrap();
    let pages = good.len() / 4096;
    assert!(pages > 25, "{pages}");
    let noise = |n: usize| {
        (0..n).map(|i| (i as u32).wrapping_mul(2654435761) as u8 ^ (i >> 3) as u8).collect::<Vec<u8>>()
    };
    let mut damages: Vec<(String, Vec<u8>)> = vec![
        (
            "text".into(),
            b"this is no database, but a text that is longer than a header would be\n".repeat(100),
        ),
        ("noise".into(), noise(good.len())),
        ("one byte".into(), vec![7]),
        ("half a header".into(), good[..50].to_vec()),
        ("the header alone".into(), good[..100].to_vec()),
        ("one page".into(), good[..4096].to_vec()),
        ("half".into(), good[..good.len() / 2].to_vec()),
        ("an odd end".into(), good[..good.len() - 1000].to_vec()),
    ];
    for page in 0..pages {
        let mut bad = good.clone();
        let at = page * 4096 + if page == 0 { 100 } else { 0 };
        bad[at..(page + 1) * 4096].copy_from_slice(&noise(4096)[..(page + 1) * 4096 - at]);
        damages.push((format!("noise in page {}", page + 1), bad));
    }
    for (name, bytes) in damages {
        for side in ["conversations.db-wal", "conversations.db-shm"] {
            let _ = std::fs::remove_file(dir.path().join(side));
        }
        std::fs::write(&path, &bytes).unwrap();
        let mut e = use_it(dir.path()).expect_err(&name);
        if matches!(e, Error::DiskFull(_)) && name == "noise in page 2" {
            // The map of pages: SQLite believes that there are none left. A check tells what it is.
            e = open(dir.path()).and_then(|store| store.check()).expect_err(&name);
        }
        assert!(matches!(e, Error::Damaged { .. }), "{name}: {e:?}");
        assert!(e.to_string().contains("conversations.db: the file is damaged"), "{name}: {e}");
        assert_eq!(e.kind(), Kind::Internal);
    }
    std::fs::write(&path, &good).unwrap();
    use_it(dir.path()).unwrap();
}

#[test]
fn a_damaged_log_loses_its_end_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let c = store.create(ME, &NewConversation::default(), 0).unwrap().id;
    drop(store);
    let store = open(dir.path()).unwrap();
    store.append(ME, &c, Place::First, &[text("kept"), text("kept")], 1).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for (cut, messages) in [(0, 2), (1000, 0), (usize::MAX, 0)] {
        for name in ["conversations.db", "conversations.db-wal"] {
            let mut bytes = std::fs::read(dir.path().join(name)).unwrap();
            if name.ends_with("wal") {
                bytes.truncate(bytes.len().saturating_sub(cut));
            }
            std::fs::write(copy.path().join(name), bytes).unwrap();
        }
        let _ = std::fs::remove_file(copy.path().join("conversations.db-shm"));
        let copied = open(copy.path()).unwrap();
        assert_eq!(copied.info(ME, &c).unwrap().messages, messages, "{cut} bytes cut");
        copied.check().unwrap();
    }
}

/// By hand: `mount -t tmpfs -o size=3m none DIR`, then with QUARREL_STORE_TEST_DIR=DIR `cargo test ... -- --ignored disk`.
#[test]
#[ignore = "needs a small file system"]
fn a_full_disk_is_said_and_loses_nothing() {
    let dir =
        std::path::PathBuf::from(std::env::var(DIR).expect("QUARREL_STORE_TEST_DIR: a small file system"));
    let store = open(&dir).unwrap();
    let c = store.create(ME, &NewConversation::default(), 0).unwrap().id;
    let (mut stored, mut full) = (0, 0);
    while full < 5 {
        match store.append(ME, &c, Place::End, &[text(&format!("word{stored} ").repeat(2000))], 1) {
            Ok(_) => stored += 1,
            Err(e) => {
                assert!(
                    e.kind() == Kind::Full && e.to_string().contains("no room left on the disk"),
                    "{e:?}"
                );
                full += 1;
            }
        }
    }
    assert!(stored > 10, "{stored}");
    assert_eq!(store.conversation(ME, &c).unwrap().messages.len(), stored);
    drop(store);
    let store = open(&dir).unwrap();
    assert_eq!(store.conversation(ME, &c).unwrap().messages.len(), stored);
    store.check().unwrap();
}

#[test]
fn what_is_not_ours_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conversations.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE recipes (name TEXT); PRAGMA application_id = 77").unwrap();
    drop(other);
    let before = std::fs::read(&path).unwrap();
    let e = open(dir.path()).unwrap_err();
    assert!(matches!(e, Error::Foreign { id: 77, .. }), "{e:?}");
    assert!(e.to_string().contains("another program (application id 0x4d)"), "{e}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_later_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let raw = rusqlite::Connection::open(&path).unwrap();
    let known: i64 = raw.pragma_query_value(None, "user_version", |r| r.get(0)).unwrap();
    for version in [known + 1, 1_000_000, -1] {
        raw.pragma_update(None, "user_version", version).unwrap();
        let e = open(dir.path()).unwrap_err();
        let line = format!("its schema is version {version}, and this program knows versions up to {known}");
        assert!(e.to_string().contains(&line), "{e}");
    }
    raw.pragma_update(None, "user_version", known).unwrap();
    open(dir.path()).unwrap();
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let e = open(&file.join("sub")).unwrap_err();
    assert!(e.to_string().contains("file") && e.to_string().contains("making the directory failed"), "{e}");
    std::fs::create_dir(dir.path().join("conversations.db")).unwrap();
    let e = open(dir.path()).unwrap_err();
    assert!(e.to_string().contains("conversations.db"), "{e}");
    // Names that another interface would read as options are only names.
    for name in ["file:x?mode=memory", ":memory:", "a b'\"%20"] {
        let odd = dir.path().join(name);
        open(&odd).unwrap().create(ME, &NewConversation::default(), 0).unwrap();
        assert!(odd.join("conversations.db").is_file(), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn only_the_owner_may_read() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let sub = dir.path().join("sub");
    let store = open(&sub).unwrap();
    store.create(ME, &NewConversation::default(), 0).unwrap();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&sub), 0o700);
    let files = ["conversations.db", "conversations.db-wal", "conversations.db-shm"].map(|f| sub.join(f));
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    drop(store);
    std::fs::set_permissions(&files[0], std::fs::Permissions::from_mode(0o644)).unwrap();
    open(&sub).unwrap();
    assert_eq!(mode(&files[0]), 0o600);
}
