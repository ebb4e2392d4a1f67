//! Tests of names: the rules of a change, and that members converge whatever happens to the records.

use std::sync::LazyLock;

use proptest::prelude::*;
use velo_object::{BlobId, ObjectKind};

use super::*;
use crate::signed::tests::signer;

static SIGNERS: LazyLock<[Signer; 3]> = LazyLock::new(|| [signer(), signer(), signer()]);

fn id(n: u8) -> ObjectId {
    ObjectId { kind: ObjectKind::Blob, blob: BlobId::of(&[n]) }
}

fn change(name: &str, id: Option<ObjectId>, expect: Option<u64>) -> Change {
    Change { name: name.parse().expect("a name"), id, expect }
}

fn write(refs: &mut Refs, change: &Change, signer: &Signer, now: u64) -> CheckedRef {
    match refs.change(change, signer, now, |_| false).expect("allowed") {
        Step::Write(record) => {
            refs.merge(&record);
            *record
        }
        Step::Forward(_) => panic!("forwarded"),
    }
}

#[test]
fn versions_rise_and_the_last_ten_stay() {
    let [a, ..] = &*SIGNERS;
    let mut refs = Refs::new([0; 32]);
    for n in 1..=12u8 {
        let record = write(&mut refs, &change("x", Some(id(n)), Some(u64::from(n) - 1)), a, u64::from(n));
        assert_eq!(record.value().version, u64::from(n));
    }
    let held = refs.live(&"x".parse().expect("a name")).expect("there").clone();
    assert_eq!(held.current.record.values.len(), HISTORY);
    assert_eq!(held.current.record.values[9].id, Some(id(3)));
    assert_eq!(Held::decode(&held.encode(), &[0; 32]).expect("from the book"), held);
    assert!(Held::decode(&held.encode(), &[1; 32]).is_err(), "another cluster");
    let stale = refs.change(&change("x", Some(id(1)), Some(3)), a, 20, |_| false);
    assert!(matches!(stale, Err(RefError::Conflict { found: 12, expected: 3, .. })));
}

#[test]
fn deleting_and_creating_anew() {
    let [a, b, _] = &*SIGNERS;
    let mut refs = Refs::new([0; 32]);
    assert!(matches!(refs.change(&change("x", None, None), a, 1, |_| false), Err(RefError::Absent(_))));
    let first = write(&mut refs, &change("x", Some(id(1)), Some(0)), a, 1);
    assert_eq!(refs.change(&change("x", None, None), b, 2, |_| false), Ok(Step::Forward(a.public())));
    write(&mut refs, &change("x", None, None), a, 2);
    assert!(refs.live(&"x".parse().expect("a name")).is_none());
    assert_eq!(refs.merge(&first).0, Merged::Known, "the tombstone wins against what it deleted");
    let again = write(&mut refs, &change("x", Some(id(2)), Some(0)), b, 3);
    assert_eq!((again.record.life, again.value().version, again.writer()), (2, 3, b.public()));
}

#[test]
fn a_revoked_writers_names_can_be_taken_over() {
    let [a, b, _] = &*SIGNERS;
    let mut refs = Refs::new([0; 32]);
    write(&mut refs, &change("x", Some(id(1)), None), a, 1);
    let step = refs.change(&change("x", Some(id(2)), Some(1)), b, 9, |node| *node == a.public());
    let Ok(Step::Write(record)) = step else { panic!("{step:?}") };
    refs.merge(&record);
    let live = refs.live(&"x".parse().expect("a name")).expect("there");
    assert_eq!((live.current.writer(), live.current.value().version), (b.public(), 2));
}

#[test]
fn of_two_creations_the_older_wins_and_the_other_is_reported() {
    let [a, b, _] = &*SIGNERS;
    let (mut one, mut two) = (Refs::new([0; 32]), Refs::new([0; 32]));
    let older = write(&mut one, &change("x", Some(id(1)), Some(0)), a, 5);
    let newer = write(&mut two, &change("x", Some(id(2)), Some(0)), b, 6);
    let lost = Lost { id: Some(id(2)), writer: b.public(), created_ms: 6 };
    assert_eq!(one.merge(&newer).0, Merged::Lost(lost.clone()));
    assert_eq!(two.merge(&older).0, Merged::Lost(lost.clone()));
    assert_eq!(one.merge(&newer).0, Merged::Known, "reported once");
    for refs in [&one, &two] {
        let held = refs.live(&"x".parse().expect("a name")).expect("there");
        assert_eq!((held.current.id(), held.lost.clone()), (Some(id(1)), Some(lost.clone())));
    }
    // The loser's writer now hands its changes to the winner's.
    assert_eq!(two.change(&change("x", Some(id(3)), None), b, 9, |_| false), Ok(Step::Forward(a.public())));
}

#[test]
fn what_is_not_signed_or_not_well_formed_is_refused() {
    let [a, ..] = &*SIGNERS;
    let good = RefRecord {
        cluster: [0; 32],
        name: "x".parse().expect("a name"),
        life: 1,
        created_ms: 1,
        values: vec![Value { id: Some(id(1)), version: 1, written_ms: 1 }],
    };
    assert!(CheckedRef::check(a.sign(&good), &[0; 32]).is_ok());
    let bad = [
        RefRecord { values: vec![], ..good.clone() },
        RefRecord { values: vec![good.values[0].clone(); 2], ..good.clone() },
        RefRecord { cluster: [1; 32], ..good.clone() },
    ];
    assert!(bad.iter().all(|record| CheckedRef::check(a.sign(record), &[0; 32]).is_err()));
}

fn exchange(from: &Refs, to: &Refs, page: usize) -> (Vec<Signed>, Vec<Signed>) {
    let (mut give, mut wanted, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let digests = from.page(after.as_ref(), page);
        let last = digests.len() < page;
        let (given, want) = to.compare(after.as_ref(), &digests, last);
        give.extend(given);
        wanted.extend(want.iter().filter_map(|name| from.get(name)).map(|held| held.current.signed.clone()));
        match digests.last() {
            Some(digest) if !last => after = Some(digest.name.clone()),
            _ => return (give, wanted),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Three nodes change three names in any order, with some records lost; pages of any size then bring all to the same state.
    #[test]
    fn members_converge(
        steps in proptest::collection::vec((0usize..3, 0u8..3, proptest::option::of(0u8..4), 0u64..4, any::<u8>()), 1..40),
        page in 1usize..4,
    ) {
        let mut nodes: Vec<Refs> = (0..3).map(|_| Refs::new([0; 32])).collect();
        let mut now = 0;
        for (node, name, value, tick, delivered) in steps {
            now += tick;
            let wanted = change(&format!("name{name}"), value.map(id), None);
            let Ok(Step::Write(record)) = nodes[node].change(&wanted, &SIGNERS[node], now, |_| false) else { continue };
            nodes[node].merge(&record);
            for (other, refs) in nodes.iter_mut().enumerate() {
                if other != node && delivered >> other & 1 == 1 {
                    refs.merge(&CheckedRef::check(record.signed.clone(), &[0; 32]).expect("signed"));
                }
            }
        }
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1)] {
            let (give, want) = exchange(&nodes[from], &nodes[to], page);
            for signed in give {
                nodes[from].merge(&CheckedRef::check(signed, &[0; 32]).expect("signed"));
            }
            for signed in want {
                nodes[to].merge(&CheckedRef::check(signed, &[0; 32]).expect("signed"));
            }
        }
        prop_assert_eq!(nodes[0].digest(), nodes[1].digest());
        prop_assert_eq!(nodes[1].digest(), nodes[2].digest());
        let (give, want) = exchange(&nodes[0], &nodes[1], page);
        prop_assert!(give.is_empty() && want.is_empty());
    }
}
