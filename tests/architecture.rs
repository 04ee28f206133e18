//! The walls of the house: the pure core knows no socket, clock, lock, thread, randomness or static state, and nothing of
//! the shell; `unsafe` lives in `sys`; only `main` ends the process.

use std::fs;
use std::path::{Path, PathBuf};

const CORE: [&str; 9] = ["wire", "config", "auth", "pool", "relay", "admin", "stats", "check", "metrics"];

/// What the core must not name, and why.
const FORBIDDEN: [(&str, &str); 24] = [
    ("tokio", "the core has no runtime"),
    ("mio::", "the core has no sockets"),
    ("hyper", "the core has no sockets"),
    ("TcpStream", "the core has no sockets"),
    ("UnixStream", "the core has no sockets"),
    ("TcpListener", "the core has no sockets"),
    ("Instant", "time is an argument"),
    ("SystemTime", "time is an argument"),
    ("std::thread", "the core has no threads"),
    ("Mutex", "the core has no locks"),
    ("RwLock", "the core has no locks"),
    ("Atomic", "the core shares nothing between threads"),
    ("static ", "the core has no statics"),
    ("thread_local", "the core has no statics"),
    ("getrandom", "random bytes are arguments"),
    ("std::fs", "file contents are arguments"),
    ("std::env", "the core has no environment"),
    ("crate::worker", "the core does not know the shell"),
    ("crate::supervisor", "the core does not know the shell"),
    ("crate::shared", "the core does not know the shell"),
    ("crate::broker", "the core does not know the shell"),
    ("crate::http", "the core does not know the shell"),
    ("crate::net", "the core does not know the shell"),
    ("crate::sys", "the core does not know the shell"),
];

/// Who may not use whom inside the core.
const DIRECTIONS: [(&str, &[&str]); 8] = [
    ("wire", &["config", "auth", "pool", "relay", "admin", "stats", "metrics"]),
    ("config", &["auth", "pool", "relay", "admin", "stats", "check", "metrics"]),
    ("stats", &["config", "auth", "pool", "relay", "admin", "wire", "metrics"]),
    ("pool", &["wire", "auth", "relay", "admin", "metrics"]),
    ("relay", &["pool", "admin", "auth", "metrics"]),
    ("check", &["wire", "pool", "relay", "admin", "stats", "metrics"]),
    ("admin", &["metrics"]),
    ("metrics", &["wire", "auth", "relay", "check"]),
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code of a file: without its comments, its string literals and its tests at the end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("readable");
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(without_strings).collect::<Vec<_>>().join("\n").replace("'static ", "'_ ")
}

fn without_strings(line: &str) -> String {
    line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().contains("tests"))
}

fn core_files() -> impl Iterator<Item = (&'static str, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    CORE.into_iter().flat_map(move |room| sources(&root.join(room)).into_iter().map(move |path| (room, path)))
}

#[test]
fn the_core_is_pure() {
    let mut broken = Vec::new();
    let mut files = 0;
    for (_, path) in core_files().filter(|(_, path)| !is_test(path)) {
        files += 1;
        let code = code(&path);
        for (word, why) in FORBIDDEN {
            if code.contains(word) {
                broken.push(format!("{}: `{word}`: {why}", path.display()));
            }
        }
    }
    assert!(files > 40, "only {files} files were looked at");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn rooms_depend_in_one_direction() {
    let mut broken = Vec::new();
    for (room, path) in core_files().filter(|(_, path)| !is_test(path)) {
        let code = code(&path);
        let Some((_, banned)) = DIRECTIONS.iter().find(|(name, _)| *name == room) else { continue };
        for other in *banned {
            if code.contains(&format!("crate::{other}")) {
                broken.push(format!("{}: {room} must not use {other}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn unsafe_code_is_in_sys_and_has_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut blocks = 0;
    for path in sources(&root) {
        let text = fs::read_to_string(&path).expect("readable");
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("unsafe {")) {
            blocks += 1;
            assert!(path.starts_with(root.join("sys")), "{}: unsafe outside of sys", path.display());
            let above = lines[index.saturating_sub(4)..=index].join("\n");
            assert!(above.contains("SAFETY:"), "{}:{}: no reason: {line}", path.display(), index + 1);
        }
    }
    let allowed = sources(&root).into_iter().filter(|path| {
        let text = fs::read_to_string(path).expect("readable");
        text.contains("allow(unsafe_code") || text.contains("expect(unsafe_code")
    });
    assert_eq!(allowed.collect::<Vec<_>>(), [root.join("sys/mod.rs")], "unsafe is allowed in one room");
    assert!(blocks > 0, "no unsafe block was found where some are known to be");
}

#[test]
fn only_main_ends_the_process() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&root) {
        let allowed = path.ends_with("main.rs") || path.starts_with(root.join("sys"));
        assert!(allowed || !code(&path).contains("process::exit"), "{} ends the process", path.display());
    }
}
