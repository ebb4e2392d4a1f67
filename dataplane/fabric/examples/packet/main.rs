//! Measures the packet fabric over kernel UDP on loopback, beside iperf3 where that is installed: GB/s, and processor
//! seconds per GB of each side. `cargo run --release -p velo-fabric --example packet -- [GIB [WORD]]` measures only
//! what has the word in its name; compare what one run prints.

mod measure;

use std::process::Command;

use measure::{Figure, Transfer};
use velo_fabric::packet::protocol::seal::{Cipher, Protection};

const TRUSTED: &str = "trusted";
const PROTECTIONS: [(Protection, &str); 3] = [
    (Protection::Trusted, TRUSTED),
    (Protection::Sealed(Cipher::Aes128Gcm), "AES-128"),
    (Protection::Sealed(Cipher::ChaCha20Poly1305), "ChaCha20"),
];

fn print(name: &str, bytes: u64, figure: &Figure) {
    let gb = bytes as f64 / 1e9;
    let Figure { seconds, reader_cpu_s, supplier_cpu_s, counters } = figure;
    println!(
        "{name:<44} {:>6.2} GB/s   CPU s/GB: reader {:.3} supplier {:.3}   lost {} spurious {}, {} datagrams in, {} out",
        gb / seconds,
        reader_cpu_s / gb,
        supplier_cpu_s / gb,
        counters.segments_lost,
        counters.segments_spurious,
        counters.datagrams_in,
        counters.datagrams_out,
    );
}

/// GB/s and both sides' processor seconds per GB of TCP by iperf3; `None` where there is no iperf3.
fn iperf3(seconds: u64, arguments: &[&str]) -> Option<(f64, f64, f64)> {
    let port = "52731";
    let mut server = Command::new("iperf3")
        .args(["-s", "-1", "-p", port])
        .stdout(std::process::Stdio::null())
        .spawn()
        .ok()?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let client = Command::new("iperf3")
        .args(["-c", "127.0.0.1", "-p", port, "-J", "-t", &seconds.to_string()])
        .args(arguments)
        .output();
    let _ = server.wait();
    let text = String::from_utf8(client.ok()?.stdout).ok()?;
    let after = |text: &str, key: &str| -> Option<f64> {
        let from = text.find(key)? + key.len();
        let number: String = text[from..]
            .trim_start_matches([':', '"', '\t', ' '])
            .chars()
            .take_while(|c| c.is_ascii_digit() || *c == '.' || *c == 'e' || *c == '+')
            .collect();
        number.parse().ok()
    };
    let sum = &text[text.find("sum_received")?..];
    let gb_per_s = after(sum, "bits_per_second")? / 8e9;
    let cpu = |key| Some(after(sum, key)? / 100.0 / gb_per_s);
    Some((gb_per_s, cpu("host_total")?, cpu("remote_total")?))
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("supply") {
        let numbers: Vec<u64> = arguments.map(|argument| argument.parse().expect("a number")).collect();
        let [gib, paths, protection, datagram] = numbers[..] else { panic!("{numbers:?}") };
        let transfer = transfer(gib, paths, PROTECTIONS[protection as usize].0, datagram as usize);
        return measure::supply(&transfer).expect("sockets");
    }
    let gib = first.and_then(|gib| gib.parse().ok()).unwrap_or(4);
    let word = arguments.next().unwrap_or_default();
    for (name, arguments) in [("iperf3 TCP", &[][..]), ("iperf3 TCP -l 1M", &["-l", "1M"][..])] {
        if name.contains(&word)
            && let Some((gb_per_s, sender, receiver)) = iperf3(gib.clamp(2, 10), arguments)
        {
            println!("{name:<44} {gb_per_s:>6.2} GB/s   CPU s/GB: reader {receiver:.3} supplier {sender:.3}");
        }
    }
    for (index, (protection, protection_name)) in PROTECTIONS.into_iter().enumerate() {
        for datagram in [1472, 8972, 32_768, 65_487] {
            for paths in [1, 4] {
                let transfer = transfer(gib, paths, protection, datagram);
                let of = format!("udp {protection_name}, {datagram}, {paths} path(s)");
                let name = format!("{of}, threads");
                if name.contains(&word) {
                    print(&name, transfer.bytes, &measure::between_threads(&transfer).expect("sockets"));
                }
                let name = format!("{of}, processes");
                if name.contains(&word) {
                    let mut supplier = Command::new(std::env::current_exe().expect("this program"));
                    let numbers = [gib, paths, index as u64, datagram as u64];
                    supplier.arg("supply").args(numbers.map(|number| number.to_string()));
                    let figure =
                        measure::between_processes(&transfer, supplier).expect("sockets and a process");
                    print(&name, transfer.bytes, &figure);
                }
            }
        }
    }
}

fn transfer(gib: u64, paths: u64, protection: Protection, datagram_max_bytes: usize) -> Transfer {
    Transfer {
        bytes: gib << 30,
        region_bytes: 256 << 20,
        paths,
        outstanding: 16 / paths,
        protection,
        datagram_max_bytes,
    }
}
