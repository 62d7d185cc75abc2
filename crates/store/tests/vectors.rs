//! Vectors of messages: kept beside them, of one owner, gone with them, made anew for another model.

use quarrel_store::{Limits, NewConversation, NewMessage, Place, Role, Store};

#[test]
fn vectors_belong_to_messages_owners_and_models() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Limits::default()).unwrap();
    let c = store.create("ann", &NewConversation::default(), 1).unwrap().id;
    let texts: Vec<NewMessage> =
        ["one", "", "three"].iter().map(|t| NewMessage::text(Role::User, *t)).collect();
    let ids: Vec<String> =
        store.append("ann", &c, Place::First, &texts, 2).unwrap().into_iter().map(|m| m.id).collect();
    let open = |model: &str| store.without_vectors("ann", &c, model, 10).unwrap();
    assert_eq!(open("a"), [(ids[0].clone(), "one".into()), (ids[2].clone(), "three".into())]);
    assert_eq!(store.without_vectors("ann", &c, "a", 1).unwrap().len(), 1);
    let new = [
        (ids[0].clone(), vec![0.5, -1.0]),
        (ids[2].clone(), vec![f32::MIN_POSITIVE, 3.0]),
        ("msg_gone".into(), vec![1.0]),
    ];
    assert_eq!(store.set_vectors("ann", &c, "a", &new).unwrap(), 2);
    assert!(open("a").is_empty());
    let have = store.vectors("ann", &c, "a").unwrap();
    assert_eq!((have.len(), &have[&ids[0]], &have[&ids[2]]), (2, &new[0].1, &new[1].1));
    // Another model's are none, and take the place of these.
    assert!(store.vectors("ann", &c, "b").unwrap().is_empty());
    assert_eq!(open("b").len(), 2);
    assert_eq!(store.set_vectors("ann", &c, "b", &[(ids[0].clone(), vec![7.0])]).unwrap(), 1);
    assert_eq!(
        (store.vectors("ann", &c, "a").unwrap().len(), store.vectors("ann", &c, "b").unwrap().len()),
        (1, 1)
    );
    // Nobody else's.
    assert!(store.vectors("bob", &c, "b").is_err() && store.without_vectors("bob", &c, "b", 1).is_err());
    assert!(store.set_vectors("bob", &c, "b", &new).is_err());
    for bad in [vec![], vec![f32::NAN], vec![f32::INFINITY]] {
        assert!(store.set_vectors("ann", &c, "b", &[(ids[0].clone(), bad)]).is_err());
    }
    // A message takes its vector with it, a conversation all.
    store.remove_from("ann", &c, &ids[2], 3).unwrap();
    assert!(store.vectors("ann", &c, "a").unwrap().is_empty());
    store.check().unwrap();
}

#[test]
fn a_full_store_takes_no_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Limits { store_bytes: 1 << 20, ..Limits::default() }).unwrap();
    let c = store.create("ann", &NewConversation::default(), 1).unwrap().id;
    let m = store.append("ann", &c, Place::First, &[NewMessage::text(Role::User, "a")], 2).unwrap();
    let vector = vec![(m[0].id.clone(), vec![0.0; 1 << 16])];
    let many: Vec<_> = std::iter::repeat_n(vector[0].clone(), 4).collect();
    assert!(store.set_vectors("ann", &c, "a", &many).is_err());
    store.set_vectors("ann", &c, "a", &vector).unwrap();
}
