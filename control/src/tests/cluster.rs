//! Joining, names, revocation and renewal among several nodes.

use std::time::Duration;

use velo_config::Paths;
use velo_object::{BlobId, ObjectId, ObjectKind};
use velo_socket::join::{JOIN_VERSION, JoinRequest};

use super::{cluster, join, until};
use crate::authority;
use crate::identity::Identity;
use crate::names::ChangeError;
use crate::node::{Control, PeerError, StartError, lock};
use crate::refs::{Change, CheckedRef, Held, RefError, RefRecord, Value};
use crate::rpc::{Ask, Knowledge, News, Reply};
use crate::signed::Signed;

fn id(n: u8) -> ObjectId {
    ObjectId { kind: ObjectKind::Tree, blob: BlobId::of(&[n]) }
}

fn set(name: &str, n: u8, expect: Option<u64>) -> Change {
    Change { name: name.parse().expect("a name"), id: Some(id(n)), expect }
}

fn read(control: &Control, name: &str) -> Option<(ObjectId, u64)> {
    control.resolve_name(&name.parse().expect("a name"))
}

#[tokio::test]
async fn newcomers_meet_all_members_and_remember_them() {
    let (mut nodes, _net) = cluster(3, None).await;
    for node in &nodes {
        assert_eq!(node.control.roster().len(), 3);
        assert!(
            lock(&node.control.keyring).epoch() == Some(1),
            "the gossip key came with the first exchange"
        );
    }
    until("velod knows the members", || {
        nodes.iter().all(|node| {
            node.control.members_changed.notify_one();
            node.control.members().len() == 3
        })
    })
    .await;
    nodes[2].restart().await;
    let control = &nodes[2].control;
    assert_eq!((control.roster().len(), lock(&control.keyring).epoch()), (3, Some(1)));
}

#[tokio::test]
async fn only_a_good_token_lets_in() {
    let (nodes, _net) = cluster(2, None).await;
    let first = &nodes[0].control;
    let dir = || tempfile::tempdir().expect("a directory");
    assert!(join(first, &dir(), [0; 16]).await.is_err(), "a secret that nobody made");
    let once = first.make_token(1, Duration::from_secs(60)).expect("a token");
    join(first, &dir(), once.secret).await.expect("the first use");
    assert!(join(first, &dir(), once.secret).await.expect_err("the second").contains("used up"));
    assert!(join(&nodes[1].control, &dir(), once.secret).await.is_err(), "not the authority's node");
    assert!(nodes[1].control.make_token(1, Duration::from_secs(60)).is_err());
    let address = ([127, 0, 0, 1], 9).into();
    let token = first.make_token(1, Duration::from_secs(60)).expect("a token");
    let garbage = JoinRequest { version: JOIN_VERSION, secret: token.secret, request: b"nonsense".to_vec() };
    for payload in [
        b"".to_vec(),
        b"hello".to_vec(),
        vec![0xff; 70_000],
        postcard::to_stdvec(&garbage).expect("plain data"),
        postcard::to_stdvec(&JoinRequest { version: 9, ..garbage.clone() }).expect("plain data"),
        crate::rpc::encode(&Ask::Have { ids: vec![], pulling: false }),
    ] {
        assert!(first.answer_stranger(address, &payload).await.is_err());
    }
    join(first, &dir(), token.secret).await.expect("a request that cannot be read takes no use");
}

#[tokio::test]
async fn names_are_written_at_their_writer_and_read_everywhere() {
    let (mut nodes, net) = cluster(3, None).await;
    let held = nodes[1].control.change_ref(set("m/llama:prod", 1, Some(0))).await.expect("created");
    assert_eq!((held.current.writer(), held.current.value().version), (nodes[1].id(), 1));
    until("all know it", || nodes.iter().all(|n| read(&n.control, "m/llama:prod") == Some((id(1), 1)))).await;

    let held = nodes[2].control.change_ref(set("m/llama:prod", 2, Some(1))).await.expect("forwarded");
    assert_eq!(held.current.writer(), nodes[1].id());
    until("all know it", || nodes.iter().all(|n| read(&n.control, "m/llama:prod") == Some((id(2), 2)))).await;
    let stale = nodes[0].control.change_ref(set("m/llama:prod", 3, Some(1))).await;
    assert!(
        matches!(stale, Err(ChangeError::Ref(RefError::Conflict { found: 2, expected: 1, .. }))),
        "{stale:?}"
    );

    net.cut(nodes[1].id(), true);
    assert_eq!(read(&nodes[2].control, "m/llama:prod"), Some((id(2), 2)), "readable when the writer is down");
    let down = nodes[2].control.change_ref(set("m/llama:prod", 3, None)).await;
    assert!(matches!(down, Err(ChangeError::Ref(RefError::Writer { .. }))), "{down:?}");
    net.cut(nodes[1].id(), false);

    nodes[2].restart().await;
    assert_eq!(read(&nodes[2].control, "m/llama:prod"), Some((id(2), 2)), "from the book");
    let gone = Change { id: None, ..set("m/llama:prod", 0, None) };
    nodes[0].control.change_ref(gone).await.expect("deleted");
    until("all know it", || nodes.iter().all(|n| read(&n.control, "m/llama:prod").is_none())).await;
}

#[tokio::test]
async fn creations_on_both_sides_of_a_cut_meet_again() {
    let (nodes, net) = cluster(3, None).await;
    net.cut(nodes[2].id(), true);
    nodes[1].control.change_ref(set("x", 1, Some(0))).await.expect("created");
    tokio::time::sleep(Duration::from_millis(5)).await;
    nodes[2].control.change_ref(set("x", 2, Some(0))).await.expect("created");
    for n in 0..20 {
        nodes[2].control.change_ref(set(&format!("many/{n}"), n, None)).await.expect("created");
    }
    net.cut(nodes[2].id(), false);
    nodes[0].control.sync_with(nodes[2].id()).await.expect("synced");
    nodes[1].control.sync_with(nodes[0].id()).await.expect("synced");
    nodes[2].control.sync_with(nodes[1].id()).await.expect("synced");
    for node in &nodes {
        assert_eq!(read(&node.control, "x"), Some((id(1), 1)), "the older one");
        assert_eq!(read(&node.control, "many/19"), Some((id(19), 1)));
        let refs = node.control.refs();
        let held = refs.live(&"x".parse().expect("a name")).expect("there");
        // Reported where the two met, at the one that lost among them.
        let lost = held.lost.as_ref().map(|lost| lost.writer);
        assert_eq!(lost, Some(nodes[2].id()).filter(|_| node.id() != nodes[1].id()));
    }
    assert_eq!(
        nodes[0].control.refs().digest(crate::now_ms()),
        nodes[2].control.refs().digest(crate::now_ms())
    );
}

#[tokio::test]
async fn names_of_strangers_and_of_no_honest_clock_are_refused() {
    let (nodes, _net) = cluster(3, None).await;
    nodes[1].control.change_ref(set("x", 1, Some(0))).await.expect("created");
    until("all know it", || nodes.iter().all(|n| read(&n.control, "x").is_some())).await;
    let now = crate::now_ms();
    let record = |life, version| RefRecord {
        cluster: nodes[0].control.cluster,
        name: "x".parse().expect("a name"),
        life,
        created_ms: 1,
        values: vec![Value { id: Some(id(6)), version, written_ms: now }],
    };
    let stranger = crate::signed::tests::signer();
    let hear = |record: Signed| nodes[0].control.hear(nodes[2].id(), News::Ref(record));
    let refused = hear(stranger.sign(&record(now, 2))).await.expect_err("nobody knows the signer");
    assert!(refused.contains("never a member"), "{refused}");
    let insider = nodes[2].control.identity.load_full();
    assert!(hear(insider.signer.sign(&record(u64::MAX, 2))).await.is_err());
    assert!(hear(insider.signer.sign(&record(now, u64::MAX))).await.is_err());
    assert_eq!(read(&nodes[0].control, "x"), Some((id(1), 1)));

    // The most that an insider can claim still leaves room above, and its writer notices; once it is revoked the name is anybody's.
    let most = insider.signer.sign(&record(now + crate::refs::CLOCK_SKEW_MS, now));
    for node in &nodes[..2] {
        assert_eq!(node.control.hear(nodes[2].id(), News::Ref(most.clone())).await, Ok(true));
    }
    assert_eq!(nodes[1].control.metrics.ref_conflicts.get(), 1);
    nodes[0].control.revoke(nodes[2].id()).await.expect("revoked");
    nodes[1].control.change_ref(set("x", 2, None)).await.expect("taken back");
    until("both know it", || nodes[..2].iter().all(|n| read(&n.control, "x") == Some((id(2), now + 1))))
        .await;
}

#[tokio::test]
async fn deleted_names_are_forgotten_by_all_but_their_writer() {
    let (mut nodes, _net) = cluster(2, None).await;
    let long_ago = crate::now_ms() - crate::refs::TOMBSTONE_LIFE_MS - 1000;
    let signing = nodes[0].control.identity.load_full();
    let dead = |name: &str| RefRecord {
        cluster: nodes[0].control.cluster,
        name: name.parse().expect("a name"),
        life: 1,
        created_ms: 1,
        values: vec![Value { id: None, version: 2, written_ms: long_ago }],
    };
    for node in &nodes {
        let record = dead("gone");
        let current = CheckedRef { signed: signing.signer.sign(&record), record };
        let held = Held { current, lost: None };
        node.control.velod.book_put(crate::node::REFS, b"gone", Some(held.encode())).await.expect("kept");
    }
    for node in &mut nodes {
        node.restart().await;
        node.control.forget_names().await;
        node.restart().await;
    }
    let known = |node: &super::Node| node.control.refs().get(&"gone".parse().expect("a name")).is_some();
    assert!(known(&nodes[0]) && !known(&nodes[1]));
}

#[tokio::test]
async fn a_revoked_node_is_out_and_the_key_of_gossip_is_another() {
    let (mut nodes, _net) = cluster(3, None).await;
    let out = nodes[2].id();
    nodes[2].control.change_ref(set("theirs", 1, None)).await.expect("created");
    until("all know it", || nodes.iter().all(|n| read(&n.control, "theirs").is_some())).await;
    assert!(nodes[1].control.revoke(out).await.is_err(), "only the authority can");
    assert!(nodes[0].control.revoke(nodes[0].id()).await.is_err(), "not itself");
    let done = nodes[0].control.revoke(out).await.expect("revoked");
    assert_eq!((done.serial, done.told, done.silent), (1, vec![nodes[1].id()], vec![]));
    for node in &nodes[..2] {
        assert!(node.control.revoked(&out) && node.control.roster().get(&out).is_none());
        assert_eq!(lock(&node.control.keyring).epoch(), Some(2));
        assert_eq!(lock(&node.velod.state).revoked, [out]);
        assert!(node.control.members().iter().all(|member| member.node != out));
        assert!(Paths::new(node.dir.path().to_owned()).revoked().exists());
    }
    assert_eq!(lock(&nodes[2].control.keyring).epoch(), Some(1), "it does not get the new key");
    let knowledge = Knowledge { members: vec![], revoked_serial: 0, gossip_epoch: None, refs: [0; 32] };
    let asked =
        nodes[2].control.ask(nodes[1].id(), &Ask::Sync(Box::new(knowledge)), Duration::from_secs(1)).await;
    assert!(matches!(asked, Err(PeerError::Unreachable(..))), "{asked:?}");
    // Its record does not come back with somebody's news, and its names can be taken over.
    let record = nodes[2].control.own_record().expect("its record");
    assert_eq!(nodes[1].control.hear(nodes[1].id(), News::Member(record)).await, Ok(false));
    let taken = nodes[1].control.change_ref(set("theirs", 2, Some(1))).await.expect("taken over");
    assert_eq!(taken.current.writer(), nodes[1].id());

    nodes[1].restart().await;
    assert!(nodes[1].control.revoked(&out));
    // The list reaches the revoked node itself only by chance; if it does, it does not start again.
    let list = Paths::new(nodes[1].dir.path().to_owned()).revoked();
    std::fs::copy(list, Paths::new(nodes[2].dir.path().to_owned()).revoked()).expect("copied");
    let again = Control::open(nodes[2].control.setup.clone(), nodes[2].control.velod.clone(), None).await;
    assert!(matches!(again, Err(StartError::Revoked(node)) if node == out));
}

#[tokio::test]
async fn who_missed_a_revocation_hears_of_it_later() {
    let (nodes, net) = cluster(3, None).await;
    net.cut(nodes[1].id(), true);
    let done = nodes[0].control.revoke(nodes[2].id()).await.expect("revoked");
    assert_eq!(done.silent, [nodes[1].id()]);
    net.cut(nodes[1].id(), false);
    nodes[1].control.sync_with(nodes[0].id()).await.expect("synced");
    assert!(nodes[1].control.revoked(&nodes[2].id()));
    assert_eq!(lock(&nodes[1].control.keyring).epoch(), Some(2));
    // A list and a key that the authority has not signed are not believed.
    let forged = nodes[1].control.identity.load().signer.sign(&crate::authority::RevocationList {
        cluster: nodes[0].control.cluster,
        serial: 9,
        revoked: vec![],
    });
    assert!(nodes[0].control.hear(nodes[1].id(), News::Revoked(forged.clone())).await.is_err());
    assert!(nodes[0].control.hear(nodes[1].id(), News::GossipKey(forged)).await.is_err());
}

#[tokio::test]
async fn revocations_at_once_follow_each_other_and_all_hold() {
    let (nodes, _net) = cluster(5, None).await;
    let authority = &nodes[0].control;
    // The second and the third wait for the first: both would see its list, and number theirs alike.
    let (a, b, c) = tokio::join!(
        authority.revoke(nodes[1].id()),
        authority.revoke(nodes[2].id()),
        authority.revoke(nodes[3].id())
    );
    let mut serials = [a, b, c].map(|done| done.expect("revoked").serial);
    serials.sort_unstable();
    assert_eq!(serials, [1, 2, 3]);
    for node in [&nodes[0], &nodes[4]] {
        assert_eq!(node.control.revocations().serial(), 3);
        assert!(nodes[1..4].iter().all(|out| node.control.revoked(&out.id())));
        assert_eq!(lock(&node.control.keyring).epoch(), Some(4));
    }
}

#[tokio::test]
async fn a_member_that_cannot_keep_a_revocation_has_not_confirmed_it() {
    let (nodes, _net) = cluster(3, None).await;
    // Nothing can be written over a folder that is not empty.
    let list = Paths::new(nodes[1].dir.path().to_owned()).revoked();
    std::fs::create_dir_all(list.join("in-the-way")).expect("a folder");
    let done = nodes[0].control.revoke(nodes[2].id()).await.expect("revoked");
    assert_eq!((done.told, done.silent), (vec![], vec![nodes[1].id()]));
    assert!(!nodes[1].control.revoked(&nodes[2].id()));
    std::fs::remove_dir_all(&list).expect("removed");
    nodes[1].control.sync_with(nodes[0].id()).await.expect("synced");
    assert!(nodes[1].control.revoked(&nodes[2].id()), "it hears of it again");

    let known = Ask::Push(vec![News::Revoked(nodes[0].control.revocations().signed().expect("one").clone())]);
    let asked = nodes[0].control.ask(nodes[1].id(), &known, Duration::from_secs(1)).await;
    assert!(matches!(asked, Ok(Reply::Done)), "what is known is confirmed: {asked:?}");
    let forged = nodes[0].control.identity.load().signer.sign(&crate::authority::RevocationList {
        cluster: nodes[0].control.cluster,
        serial: 9,
        revoked: vec![],
    });
    let news =
        Ask::Push(vec![News::Member(nodes[0].control.own_record().expect("one")), News::Revoked(forged)]);
    let asked = nodes[0].control.ask(nodes[1].id(), &news, Duration::from_secs(1)).await;
    assert!(
        matches!(&asked, Ok(Reply::Refused(refused)) if refused.len() == 1 && refused[0].0 == 1),
        "{asked:?}"
    );
}

#[tokio::test]
async fn certificates_renew_themselves() {
    let (mut nodes, _net) = cluster(2, None).await;
    for node in &nodes {
        let files = Paths::new(node.dir.path().to_owned());
        let before = std::fs::read(files.node_certificate()).expect("a certificate");
        node.control.renew().await.expect("renewed");
        assert_ne!(std::fs::read(files.node_certificate()).expect("a certificate"), before);
        assert_eq!(Identity::load(node.dir.path()).expect("good").node, node.id());
        assert_eq!(lock(&node.velod.state).reloads, 1);
    }
    let identity = Identity::load(nodes[1].dir.path()).expect("good");
    let life = identity.expires_ms - identity.begins_ms;
    assert!(identity.renew_at_ms().abs_diff(identity.begins_ms + life * 2 / 3) < 3);

    // A running node does so by itself, once two thirds are over: of ten minutes of skew and four of life, more are.
    let before = Identity::load(nodes[1].dir.path()).expect("good");
    let key = authority::read(&Paths::new(nodes[1].dir.path().to_owned()).node_key()).expect("a key");
    let request = authority::request(&String::from_utf8(key).expect("PEM")).expect("a request");
    let (issuer, _) = nodes[0].control.authority.as_ref().expect("the authority");
    let (_, short) = issuer.issue(&request, Duration::from_secs(240)).expect("a certificate");
    let path = Paths::new(nodes[1].dir.path().to_owned()).node_certificate();
    std::fs::write(&path, authority::pem(&short)).expect("written");
    nodes[1].restart().await;
    assert!(nodes[1].control.identity.load().expires_ms < before.expires_ms);
    let reloads = lock(&nodes[1].velod.state).reloads;
    let renewing = tokio::spawn(nodes[1].control.clone().renewal_loop());
    until("it is renewed", || lock(&nodes[1].velod.state).reloads == reloads + 1).await;
    let renewed = Identity::load(nodes[1].dir.path()).expect("good");
    assert!(renewed.expires_ms >= before.expires_ms && renewed.node == nodes[1].id());
    assert_eq!(nodes[1].control.identity.load().expires_ms, renewed.expires_ms);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(lock(&nodes[1].velod.state).reloads, reloads + 1, "once");
    renewing.abort();

    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key").serialize_pem();
    let request = authority::request(&other).expect("a request");
    let asked = nodes[1].control.ask(nodes[0].id(), &Ask::Renew { request }, Duration::from_secs(1)).await;
    assert!(asked.is_err(), "a certificate for another key: {asked:?}");
}

#[tokio::test]
async fn calls_that_exceed_limits_or_make_no_sense_are_refused() {
    let (nodes, _net) = cluster(2, None).await;
    let ids = vec![BlobId::of(b"x"); crate::rpc::MAX_IDS + 1];
    let ask = |ask: Ask| {
        let (control, node) = (nodes[1].control.clone(), nodes[0].id());
        async move { control.ask(node, &ask, Duration::from_secs(1)).await }
    };
    assert!(ask(Ask::Have { ids, pulling: false }).await.is_err());
    assert!(ask(Ask::Renew { request: vec![0; 20_000] }).await.is_err());
    let call = nodes[1].control.velod.call(nodes[0].id(), b"\x01\xff".to_vec(), Duration::from_secs(1));
    assert!(call.await.is_err());
    assert!(
        matches!(ask(Ask::Have { ids: vec![], pulling: false }).await, Ok(Reply::Have(list)) if list.is_empty())
    );
    assert!(nodes[0].control.metrics.calls_refused.get() >= 3);
}
