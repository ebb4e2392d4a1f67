//! Threads without which velod moves nothing: a panic in one ends the process, so that whoever supervises it starts it anew.
//!
//! Alive without them it would take sessions and jobs and do nothing about them.

/// Held by such a thread; ends the process where the thread panics. The panic's own message has been printed by then.
pub(super) struct EndsProcess;

impl Drop for EndsProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            tracing::error!(
                thread = thread.name(),
                "velod ends because a thread of it panicked: report this"
            );
            // Not `exit`: what that runs may wait for the threads that are broken.
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::EndsProcess;

    const CHILD: &str = "VELOD_TEST_PANIC";

    #[test]
    fn a_panic_ends_the_process_and_a_return_does_not() {
        let run = |name: &str, panics: bool| {
            let guarded = move || {
                let _end = EndsProcess;
                assert!(!panics, "as the test wants it");
            };
            std::thread::Builder::new().name(name.to_owned()).spawn(guarded).expect("a thread").join()
        };
        if std::env::var_os(CHILD).is_some() {
            let _ = run("broken", true);
            // Reached only where the panic ended nothing but its thread.
            return;
        }
        run("sound", false).expect("no panic");
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        child.args(["--exact", "engine::fatal::tests::a_panic_ends_the_process_and_a_return_does_not"]);
        let output = child.env(CHILD, "1").output().expect("run");
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(6), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
