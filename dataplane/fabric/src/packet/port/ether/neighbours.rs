//! Where neighbours are: a bounded table from addresses to stations. It says when to ask again; who is asked, and how, is not its matter.

use std::collections::HashMap;
use std::net::IpAddr;

use super::Mac;
use crate::packet::limits;

/// How long an answer is good before the question is put again, while datagrams go on being sent by it.
pub(super) const FRESH_MS: u64 = 20_000;
/// How long an answer is used at most without another.
pub(super) const STALE_MS: u64 = 30_000;
/// Between two questions about the same neighbour.
const ASK_EVERY_MS: u64 = 250;

const _: () = assert!(FRESH_MS + 4 * ASK_EVERY_MS < STALE_MS);

#[derive(Debug, Clone, Copy)]
struct Entry {
    mac: Option<Mac>,
    confirmed_ms: u64,
    asked_ms: u64,
    used_ms: u64,
}

/// What is known of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// Where it is.
    pub(super) mac: Option<Mac>,
    /// Whether to ask now.
    pub(super) ask: bool,
}

/// The table. Allocates nothing after it was made.
pub(super) struct Neighbours {
    entries: HashMap<IpAddr, Entry>,
    /// The last one that was found, until `valid_ms`: bursts go to one neighbour.
    last: Option<(IpAddr, Mac, u64)>,
}

impl Neighbours {
    pub(super) fn new() -> Self {
        Self { entries: HashMap::with_capacity(2 * limits::NEIGHBOURS), last: None }
    }

    /// Where `address` is, and whether to ask for it; a question that is due is taken for put.
    pub(super) fn find(&mut self, now_ms: u64, address: IpAddr) -> Known {
        if let Some((last, mac, until_ms)) = self.last
            && last == address
            && now_ms < until_ms
        {
            return Known { mac: Some(mac), ask: false };
        }
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.used_ms = now_ms;
            if now_ms.saturating_sub(entry.confirmed_ms) >= STALE_MS {
                entry.mac = None;
            }
            let fresh = entry.mac.is_some() && now_ms.saturating_sub(entry.confirmed_ms) < FRESH_MS;
            let ask = !fresh && now_ms.saturating_sub(entry.asked_ms) >= ASK_EVERY_MS;
            if ask {
                entry.asked_ms = now_ms;
            }
            self.last = entry
                .mac
                .filter(|_| fresh)
                .map(|mac| (address, mac, (now_ms + ASK_EVERY_MS).min(entry.confirmed_ms + FRESH_MS)));
            return Known { mac: entry.mac, ask };
        }
        if self.entries.len() >= limits::NEIGHBOURS
            && let Some(oldest) =
                self.entries.iter().min_by_key(|(_, e)| e.used_ms).map(|(address, _)| *address)
        {
            self.entries.remove(&oldest);
        }
        let entry = Entry { mac: None, confirmed_ms: 0, asked_ms: now_ms, used_ms: now_ms };
        self.entries.insert(address, entry);
        Known { mac: None, ask: true }
    }

    /// Takes an answer. Only about neighbours that datagrams are sent to: a stranger makes no entry. Without `replace` it does not move
    /// one whose place is known.
    pub(super) fn learn(&mut self, now_ms: u64, address: IpAddr, mac: Mac, replace: bool) {
        if let Some(entry) = self.entries.get_mut(&address)
            && (replace || entry.mac.is_none_or(|known| known == mac))
        {
            entry.mac = Some(mac);
            entry.confirmed_ms = now_ms;
            self.last = None;
        }
    }

    /// Forgets where it is: nobody answers there any more.
    pub(super) fn lose(&mut self, address: IpAddr) {
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.mac = None;
            self.last = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn address(last: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + last).into()
    }

    #[test]
    fn it_asks_once_in_a_while_until_it_knows() {
        let mut table = Neighbours::new();
        assert_eq!(table.find(5, address(1)), Known { mac: None, ask: true });
        assert_eq!(table.find(6, address(1)), Known { mac: None, ask: false });
        assert_eq!(table.find(5 + ASK_EVERY_MS, address(1)), Known { mac: None, ask: true });
        table.learn(300, address(1), MAC, false);
        for now in [300, 301, 300 + FRESH_MS - 1] {
            assert_eq!(table.find(now, address(1)), Known { mac: Some(MAC), ask: false });
        }
        assert_eq!(table.find(300 + FRESH_MS, address(1)), Known { mac: Some(MAC), ask: true });
        assert_eq!(table.find(301 + FRESH_MS, address(1)), Known { mac: Some(MAC), ask: false });
        assert_eq!(table.find(300 + STALE_MS, address(1)), Known { mac: None, ask: true });
    }

    #[test]
    fn strangers_make_no_entry_and_move_nobody_without_leave() {
        let mut table = Neighbours::new();
        table.learn(1, address(1), MAC, true);
        assert_eq!(table.find(2, address(1)).mac, None);
        table.learn(3, address(1), MAC, false);
        let other = Mac([2, 0, 0, 0, 0, 8]);
        table.learn(4, address(1), other, false);
        assert_eq!(table.find(5, address(1)).mac, Some(MAC));
        table.learn(6, address(1), other, true);
        assert_eq!(table.find(7, address(1)).mac, Some(other));
        table.lose(address(1));
        assert_eq!(table.find(8, address(1)).mac, None);
    }

    #[test]
    fn it_is_bounded_and_forgets_who_was_unused_longest() {
        let mut table = Neighbours::new();
        let capacity = table.entries.capacity();
        for i in 0..limits::NEIGHBOURS as u32 {
            table.find(u64::from(i), address(i));
            table.learn(u64::from(i), address(i), MAC, false);
        }
        let now = limits::NEIGHBOURS as u64;
        assert_eq!(table.find(now, address(0)).mac, Some(MAC));
        for i in 0..1000 {
            table.find(now + 1 + u64::from(i), address(1_000_000 + i));
        }
        assert_eq!(table.entries.len(), limits::NEIGHBOURS);
        assert_eq!(table.entries.capacity(), capacity);
        assert!(!table.entries.contains_key(&address(1)));
    }
}
