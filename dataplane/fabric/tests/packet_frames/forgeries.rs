//! Frames that the peer did not make, or did not make like this: every one is refused, and leaves no trace.

use velo_fabric::packet::protocol::frame::Reject;
use velo_fabric::packet::protocol::seal::{Frame, OpenError, Opener, PathKeys, PathName, PathSecret, Role};

use crate::{NAME, PROTECTIONS, frames, pair};

/// Why a datagram brings nothing, as its receiver finds out: with the payload of plain data, that is when it is copied.
fn refused(opener: &mut Opener, datagram: &[u8]) -> Option<Reject> {
    let mut datagram = datagram.to_vec();
    match opener.open(&mut datagram) {
        Err(OpenError::Rejected(reject)) => Some(reject),
        Err(error) => panic!("{error}: a forgery is taken for the peer's"),
        Ok(opened) => match opened.frame {
            Frame::Data(_, payload) => payload.copy_to(&mut vec![0; payload.len()]).err(),
            _ => None,
        },
    }
}

#[test]
fn every_bit_counts() {
    for protection in PROTECTIONS {
        let (mut dialler, _) = pair(protection);
        for (kind, good) in frames(&mut dialler.sealer) {
            // Its own opener: a damaged payload of plain data uses its number up.
            let mut opener = pair(protection).1.opener;
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    refused(&mut opener, &bad).is_some(),
                    "{protection:?} {kind}: bit {bit} does not count"
                );
                if opener.newest() != 0 {
                    assert!(kind == "data" && bit / 8 >= 56, "{protection:?} {kind}: bit {bit} left a trace");
                    opener = pair(protection).1.opener;
                }
            }
            assert_eq!(refused(&mut opener, &good), None);
        }
    }
}

#[test]
fn every_length_counts() {
    for protection in PROTECTIONS {
        let (mut dialler, _) = pair(protection);
        for (kind, good) in frames(&mut dialler.sealer) {
            for len in (0..good.len()).chain(good.len() + 1..good.len() + 40) {
                let mut opener = pair(protection).1.opener;
                let mut bad = good.clone();
                bad.resize(len, 0);
                assert!(refused(&mut opener, &bad).is_some(), "{protection:?} {kind} of {len} bytes");
            }
        }
    }
}

#[test]
fn every_frame_counts_once() {
    for protection in PROTECTIONS {
        let (mut dialler, mut accepter) = pair(protection);
        let all = frames(&mut dialler.sealer);
        for i in [2, 0, 3, 1] {
            assert_eq!(refused(&mut accepter.opener, &all[i].1), None);
            for (_, again) in [&all[i], &all[2]] {
                assert_eq!(refused(&mut accepter.opener, again), Some(Reject::Replayed));
            }
        }
    }
}

/// Bodies and ends of one frame under the header of another.
#[test]
fn frames_cannot_be_put_together_from_others() {
    for protection in PROTECTIONS {
        let (mut dialler, _) = pair(protection);
        let (all, others) = (frames(&mut dialler.sealer), frames(&mut dialler.sealer));
        for (a, b) in all.iter().zip(&others) {
            for cut in 1..a.1.len() {
                let mut opener = pair(protection).1.opener;
                let mixed = [&a.1[..cut], &b.1[cut..]].concat();
                // The two frames differ only in their numbers and, where there are some, tags: or the cut changes nothing.
                if mixed != a.1 && mixed != b.1 {
                    assert!(refused(&mut opener, &mixed).is_some(), "{protection:?} {} cut at {cut}", a.0);
                }
            }
        }
    }
}

#[test]
fn other_keys_open_nothing() {
    let secret = PathSecret(std::array::from_fn(|i| i as u8));
    let mut other = secret.clone();
    other.0[31] ^= 1;
    for protection in PROTECTIONS {
        let (mut dialler, _) = pair(protection);
        let all = frames(&mut dialler.sealer);
        let accepter =
            |secret, name, protection| PathKeys::derive(secret, &name, Role::Accepter, protection).opener;
        let mut strangers = vec![
            ("another secret", accepter(&other, NAME, protection)),
            ("another fabric", accepter(&secret, PathName { fabric: "udq", ..NAME }, protection)),
            ("a longer name", accepter(&secret, PathName { fabric: "udp0", ..NAME }, protection)),
            ("another dialler", accepter(&secret, PathName { dialler: 1, ..NAME }, protection)),
            ("another accepter", accepter(&secret, PathName { accepter: 1, ..NAME }, protection)),
            ("the sender itself", PathKeys::derive(&secret, &NAME, Role::Dialler, protection).opener),
        ];
        for another in PROTECTIONS.into_iter().filter(|another| *another != protection) {
            strangers.push(("another protection", accepter(&secret, NAME, another)));
        }
        for (who, opener) in &mut strangers {
            for (kind, frame) in &all {
                let mut frame = frame.clone();
                assert!(refused(opener, &frame).is_some(), "{who} opens {protection:?} {kind}");
                // Not only because of the number that stands in it.
                frame[4..8].copy_from_slice(&opener.path().to_le_bytes());
                let (reject, newest) = (refused(opener, &frame), opener.newest());
                assert!(reject.is_some() && newest == 0, "{who} opens readdressed {protection:?} {kind}");
            }
        }
    }
}

/// What one sends cannot be sent back to it, not even where both ends gave the path the same number.
#[test]
fn reflections_are_refused() {
    let name = PathName { fabric: "udp", dialler: 7, accepter: 7 };
    for protection in PROTECTIONS {
        let mut dialler = PathKeys::derive(&PathSecret([1; 32]), &name, Role::Dialler, protection);
        for (kind, frame) in frames(&mut dialler.sealer) {
            assert_eq!(
                refused(&mut dialler.opener, &frame),
                Some(Reject::Forged),
                "{protection:?} {kind} reflected"
            );
        }
    }
}
