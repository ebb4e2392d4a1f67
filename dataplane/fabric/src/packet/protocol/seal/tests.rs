//! Tests that need to be at a number that no test can count to.

use super::*;
use crate::packet::limits::{FORGERIES_MAX, REPLAY_WINDOW_PACKETS};
use crate::packet::protocol::frame::{Message, Reject};

const CIPHERS: [Cipher; 2] = [Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305];

fn pair(protection: Protection) -> (Sealer, Opener) {
    let secret = PathSecret([7; 32]);
    let name = PathName { fabric: "test", dialler: 1, accepter: 2 };
    let dialler = PathKeys::derive(&secret, &name, Role::Dialler, protection);
    (dialler.sealer, PathKeys::derive(&secret, &name, Role::Accepter, protection).opener)
}

fn frame(sealer: &mut Sealer) -> Vec<u8> {
    let mut space = vec![0; 100];
    let len = sealer.control(&mut space, |body| assert!(body.push(&Message::Ping { stamp: 5 }))).unwrap();
    space.truncate(len);
    space
}

/// Packets made before an update and packets made after it open in any order, as far as the window lets them in.
#[test]
fn a_key_update_loses_nothing() {
    for cipher in CIPHERS {
        let (mut sealer, mut opener) = pair(Protection::Sealed(cipher));
        for generation in 1..=3 {
            sealer.number = generation * KEY_UPDATE_PACKETS - 3;
            let mut frames: Vec<_> = (0..6).map(|_| frame(&mut sealer)).collect();
            let phases: Vec<_> = frames.iter().map(|frame| Header::parse(frame).unwrap().phase).collect();
            let before = generation % 2 == 0;
            assert_eq!(phases, [before, before, !before, !before, !before, !before]);
            for i in [0, 3, 1, 5, 4, 2] {
                let number = opener.open(&mut frames[i]).unwrap().number;
                assert_eq!(number, generation * KEY_UPDATE_PACKETS - 2 + i as u64);
            }
        }
    }
}

/// The phase is part of what is authenticated, and must be that of the number.
#[test]
fn a_phase_that_does_not_fit_the_number_is_refused() {
    let (mut sealer, mut opener) = pair(Protection::Sealed(Cipher::Aes128Gcm));
    let mut made = frame(&mut sealer);
    made[1] ^= 1;
    assert_eq!(opener.open(&mut made).unwrap_err(), Reject::Flags.into());
}

/// Only the neighbours of the current key are held: what is further away costs no derivation and opens nothing.
#[test]
fn keys_that_are_far_away_are_refused() {
    let (mut sealer, mut opener) = pair(Protection::Sealed(Cipher::ChaCha20Poly1305));
    let mut first = frame(&mut sealer);
    for generation in 1..=2 {
        sealer.number = generation * KEY_UPDATE_PACKETS - 1;
        let mut made = frame(&mut sealer);
        if generation == 2 {
            let mut far = made.clone();
            let mut fresh = pair(Protection::Sealed(Cipher::ChaCha20Poly1305)).1;
            assert_eq!(fresh.open(&mut far).unwrap_err(), Reject::Number.into());
        }
        assert_eq!(opener.open(&mut made).unwrap().number, generation * KEY_UPDATE_PACKETS);
    }
    assert_eq!(opener.open(&mut first).unwrap_err(), Reject::Number.into());
}

/// A frame under the right key that is too old for the window is refused, however good its tag.
#[test]
fn a_packet_behind_the_window_is_refused() {
    for protection in [Protection::Sealed(Cipher::Aes128Gcm), Protection::Trusted] {
        let (mut sealer, mut opener) = pair(protection);
        let [mut old, mut kept] = [frame(&mut sealer), frame(&mut sealer)];
        sealer.number = REPLAY_WINDOW_PACKETS;
        opener.open(&mut frame(&mut sealer)).unwrap();
        assert_eq!(opener.open(&mut old).unwrap_err(), Reject::Replayed.into());
        let opened = opener.open(&mut kept).unwrap();
        assert!(!opened.newest);
        assert_eq!((opened.number, opener.newest()), (2, REPLAY_WINDOW_PACKETS + 1));
    }
}

/// An update needs a valid frame: forgeries with numbers of the next key leave everything as it is.
#[test]
fn a_forgery_updates_no_key() {
    let (mut sealer, mut opener) = pair(Protection::Sealed(Cipher::Aes128Gcm));
    let mut honest = frame(&mut sealer);
    for _ in 0..3 {
        sealer.number = KEY_UPDATE_PACKETS - 1;
        let mut forged = frame(&mut sealer);
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(opener.open(&mut forged).unwrap_err(), Reject::Forged.into());
    }
    assert_eq!(opener.newest(), 0);
    assert_eq!(opener.open(&mut honest).unwrap().number, 1);
}

#[test]
fn after_too_many_forgeries_nothing_is_believed() {
    for protection in [Protection::Sealed(Cipher::ChaCha20Poly1305), Protection::Trusted] {
        let (mut sealer, mut opener) = pair(protection);
        opener.set_forgeries(FORGERIES_MAX - 1);
        opener.open(&mut frame(&mut sealer)).unwrap();
        let mut forged = frame(&mut sealer);
        forged[20] ^= 1;
        assert_eq!(opener.open(&mut forged).unwrap_err(), Reject::Forged.into());
        assert_eq!(opener.open(&mut frame(&mut sealer)).unwrap_err(), Reject::Forged.into());
    }
}

#[test]
fn the_last_number_is_the_last() {
    for protection in [Protection::Sealed(Cipher::Aes128Gcm), Protection::Trusted] {
        let (mut sealer, _) = pair(protection);
        sealer.number = u64::MAX;
        let mut space = [0; 100];
        assert_eq!(sealer.probe(&mut space, 1, 60), None);
        assert_eq!(sealer.number(), u64::MAX);
    }
}
