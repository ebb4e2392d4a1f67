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
            refs.merge(&record, 0);
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
    assert_eq!(refs.merge(&first, 0).0, Merged::Known, "the tombstone wins against what it deleted");
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
    refs.merge(&record, 0);
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
    assert_eq!(one.merge(&newer, 0).0, Merged::Lost(lost.clone()));
    assert_eq!(two.merge(&older, 0).0, Merged::Lost(lost.clone()));
    assert_eq!(one.merge(&newer, 0).0, Merged::Known, "reported once");
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

#[test]
fn numbers_that_leave_no_room_above_them_are_refused() {
    let [a, ..] = &*SIGNERS;
    let now = 1_800_000_000_000;
    let good = RefRecord {
        cluster: [0; 32],
        name: "x".parse().expect("a name"),
        life: first_life(now),
        created_ms: now,
        values: vec![Value { id: Some(id(1)), version: 1, written_ms: now }],
    };
    let check =
        |record: &RefRecord| CheckedRef::check(a.sign(record), &[0; 32]).expect("signed").check_numbers(now);
    assert_eq!(check(&good), Ok(()));
    assert_eq!(check(&RefRecord { life: now + CLOCK_SKEW_MS, ..good.clone() }), Ok(()));
    let value = |version, written_ms| vec![Value { id: Some(id(1)), version, written_ms }];
    let far = now + CLOCK_SKEW_MS + 1;
    for bad in [
        RefRecord { life: far, ..good.clone() },
        RefRecord { life: u64::MAX, ..good.clone() },
        RefRecord { created_ms: far, ..good.clone() },
        RefRecord { values: value(u64::MAX, now), ..good.clone() },
        RefRecord { values: value(1, far), ..good.clone() },
    ] {
        assert!(check(&bad).is_err(), "{bad:?}");
    }
    // What a book might still hold from before must not end the process.
    let mut refs = Refs::new([0; 32]);
    let last = RefRecord { values: value(u64::MAX, now), ..good.clone() };
    refs.restore(Held { current: CheckedRef { signed: a.sign(&last), record: last }, lost: None });
    assert_eq!(
        refs.change(&change("x", None, None), a, now, |_| false),
        Err(RefError::Spent("x".to_owned()))
    );
    let dead = vec![Value { id: None, version: 3, written_ms: now }];
    let last = RefRecord { life: u64::MAX, values: dead, ..good };
    refs.restore(Held { current: CheckedRef { signed: a.sign(&last), record: last }, lost: None });
    let anew = refs.change(&change("x", Some(id(1)), None), a, now, |_| false);
    assert_eq!(anew, Err(RefError::Spent("x".to_owned())));
}

/// As many names as there may be, of one kind.
fn crowd(id: Option<ObjectId>, written_ms: u64) -> Refs {
    let mut refs = Refs::new([0; 32]);
    let mut record = RefRecord {
        cluster: [0; 32],
        name: "x".parse().expect("a name"),
        life: 1,
        created_ms: 1,
        values: vec![Value { id, version: 1, written_ms }],
    };
    let signed = SIGNERS[0].sign(&record);
    for n in 0..MAX_REFS {
        record.name = format!("many/{n}").parse().expect("a name");
        let current = CheckedRef { record: record.clone(), signed: signed.clone() };
        refs.restore(Held { current, lost: None });
    }
    refs
}

#[test]
fn only_names_that_mean_something_count_against_the_limit() {
    let [a, b, _] = &*SIGNERS;
    let mut full = crowd(Some(id(1)), 1);
    let one_more = change("one-more", Some(id(2)), None);
    assert_eq!(full.change(&one_more, a, 2, |_| false), Err(RefError::Full));
    let mut other = Refs::new([0; 32]);
    let theirs = write(&mut other, &one_more, b, 2);
    assert_eq!(full.merge(&theirs, 2), (Merged::Full, None), "nor by another's record");
    write(&mut full, &change("many/7", None, None), a, 3);
    write(&mut full, &one_more, a, 4);
    assert_eq!(full.change(&change("many/7", Some(id(3)), None), a, 5, |_| false), Err(RefError::Full));

    let mut dead = crowd(None, 1);
    write(&mut dead, &one_more, a, 2);
    write(&mut dead, &change("one-more", None, None), a, 3);
    assert!(dead.is_crowded() && dead.forgettable(a.public(), 4).len() == 1, "the oldest goes");
    let late = TOMBSTONE_LIFE_MS + 2;
    assert_eq!(dead.forgettable(a.public(), late).len(), 1, "the writer remembers what it deleted");
    let forgettable = dead.forgettable(b.public(), late);
    assert_eq!(forgettable.len(), MAX_REFS, "the others do not");
    forgettable.iter().for_each(|name| dead.forget(name));
    assert!(!dead.is_crowded() && dead.get(&"one-more".parse().expect("a name")).is_some());
}

#[test]
fn a_deletion_that_was_forgotten_brings_nothing_back_and_deletes_nothing_new() {
    let [a, b, _] = &*SIGNERS;
    let (begin, name) = (1_800_000_000_000, "x".parse::<RefName>().expect("a name"));
    let [mut writer, mut other, mut away] = [0; 3].map(|_| Refs::new([0; 32]));
    let live = write(&mut writer, &change("x", Some(id(1)), None), a, begin);
    for refs in [&mut other, &mut away] {
        refs.merge(&live, begin);
    }
    let dead = write(&mut writer, &change("x", None, None), a, begin + 1);
    other.merge(&dead, begin + 1);
    let now = begin + 2 + TOMBSTONE_LIFE_MS;
    assert!(writer.forgettable(a.public(), now).is_empty());
    assert_eq!(other.forgettable(b.public(), now), std::slice::from_ref(&name));
    assert_eq!(other.digest(now), writer.digest(now), "members agree before and after they forget");
    other.forget(&name);
    assert_eq!(other.digest(now), writer.digest(now));
    assert_eq!(other.merge(&dead, now), (Merged::Known, None), "and do not learn it again");

    // Who was away brings the name back, until the writer hears of it: what it gives for a page with the name is its deletion.
    assert_eq!(other.merge(&live, now).0, Merged::New);
    let (give, _) = writer.compare(None, &other.page(None, 10, now), true, now);
    assert_eq!(give, std::slice::from_ref(&dead.signed));
    assert_eq!(other.merge(&dead, now).0, Merged::New);
    assert!(other.live(&name).is_none());
    assert_eq!(writer.compare(None, &other.page(None, 10, now), true, now), (vec![], vec![]));

    // A name that is created anew by somebody who does not know that there was one stands against both.
    other.forget(&name);
    let anew = write(&mut other, &change("x", Some(id(2)), Some(0)), b, now);
    for refs in [&mut writer, &mut away] {
        assert_eq!(refs.merge(&anew, now).0, Merged::New);
    }
    assert_eq!(other.merge(&live, now).0, Merged::Known);
    assert_eq!(other.merge(&dead, now).0, Merged::Known);
}

fn exchange(from: &Refs, to: &Refs, page: usize) -> (Vec<Signed>, Vec<Signed>) {
    let (mut give, mut wanted, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let digests = from.page(after.as_ref(), page, 0);
        let last = digests.len() < page;
        let (given, want) = to.compare(after.as_ref(), &digests, last, 0);
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
            nodes[node].merge(&record, 0);
            for (other, refs) in nodes.iter_mut().enumerate() {
                if other != node && delivered >> other & 1 == 1 {
                    refs.merge(&CheckedRef::check(record.signed.clone(), &[0; 32]).expect("signed"), 0);
                }
            }
        }
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1)] {
            let (give, want) = exchange(&nodes[from], &nodes[to], page);
            for signed in give {
                nodes[from].merge(&CheckedRef::check(signed, &[0; 32]).expect("signed"), 0);
            }
            for signed in want {
                nodes[to].merge(&CheckedRef::check(signed, &[0; 32]).expect("signed"), 0);
            }
        }
        prop_assert_eq!(nodes[0].digest(0), nodes[1].digest(0));
        prop_assert_eq!(nodes[1].digest(0), nodes[2].digest(0));
        let (give, want) = exchange(&nodes[0], &nodes[1], page);
        prop_assert!(give.is_empty() && want.is_empty());
    }
}
