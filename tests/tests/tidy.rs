//! The rules of the house that no compiler checks: who may know whom, and what must not be there.
//!
//! A rule reads source text, comments and strings taken out, and names file and reason when it is
//! broken. The tables at the top are the rules; loosening one is a change of the architecture.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Words of code that a part of the house must not contain, and why.
const FORBIDDEN: [Rule; 7] = [
    Rule {
        within: "world/src/",
        words: &["blockcache", "glidefs"],
        except: &[],
        why: "world is below everything and knows none of it",
    },
    Rule {
        within: "blockcache/src/",
        words: &[
            "glidefs",
            "nbd",
            "Nbd",
            "NBD",
            "s3",
            "S3",
            "object_store",
            "tokio",
        ],
        except: &[],
        why: "the cache knows no front door and no store",
    },
    Rule {
        within: "glidefs/src/",
        words: &["glidefs_tests", "io_uring", "object_store"],
        except: &[],
        why: "the product does not lean on its tests, and meets the machine through world",
    },
    Rule {
        within: "world/src/",
        words: &["tokio"],
        except: &["world/src/linux", "world/src/sync"],
        why: "tokio is the edge: never in what the simulation runs",
    },
    Rule {
        within: "glidefs/src/",
        words: &["tokio", "axum", "hyper"],
        except: &[
            "glidefs/src/main.rs",
            "glidefs/src/daemon",
            "glidefs/src/api",
            "glidefs/src/cli",
            "glidefs/src/metrics",
        ],
        why: "tokio is the edge: never in the data path",
    },
    Rule {
        within: "",
        words: &["unsafe"],
        except: &["world/src/linux/ring.rs", "world/src/linux/heap.rs"],
        why: "unsafe lives beside the ring and the heap alone",
    },
    Rule {
        within: "glidefs/src/",
        words: &["blockcache"],
        except: &[
            "glidefs/src/daemon",
            "glidefs/src/export",
            "glidefs/src/shard",
            "glidefs/src/sync",
            "glidefs/src/volume",
        ],
        why: "front doors and the edge meet the cache through what is between",
    },
];

/// Modules of glidefs, and those beside it that each may name. Tests of a module too.
const MODULES: [(&str, &[&str]); 16] = [
    ("api", &["config", "control", "metrics"]),
    ("cli", &["api", "config", "control", "daemon", "meter"]),
    ("config", &["volume"]),
    ("control", &["meter"]),
    (
        "daemon",
        &[
            "api", "cli", "config", "control", "export", "nbd", "shard", "sync", "volume",
        ],
    ),
    ("device", &[]),
    (
        "export",
        &[
            "control",
            "device",
            "meter",
            "operations",
            "race",
            "repeats",
            "sync",
            "volume",
        ],
    ),
    ("meter", &[]),
    ("metrics", &["control", "meter"]),
    ("nbd", &["device", "repeats"]),
    ("race", &[]),
    ("operations", &["control"]),
    ("repeats", &[]),
    (
        "shard",
        &[
            "control",
            "device",
            "export",
            "operations",
            "race",
            "repeats",
            "sync",
            "volume",
        ],
    ),
    ("sync", &["export", "race", "volume"]),
    ("volume", &["meter"]),
];
const MODULES_IN: &str = "glidefs/src/";
/// Files that stand above the modules.
const ROOTS: [&str; 2] = ["lib.rs", "main.rs"];

/// What a file that calls itself pure must not contain besides its tests: nothing waits, and nobody
/// else is asked.
const IMPURE: [&str; 12] = [
    "async",
    "await",
    "spawn",
    "sleep",
    "World",
    "Store",
    "File",
    "RefCell",
    "Mutex",
    "Instant",
    "SystemTime",
    "fs",
];
/// These must go on calling themselves so.
const PURE: [&str; 6] = [
    "blockcache/src/index.rs",
    "blockcache/src/record.rs",
    "glidefs/src/export/decide.rs",
    "glidefs/src/nbd/handshake.rs",
    "glidefs/src/sync/plan.rs",
    "glidefs/src/volume/merge.rs",
];

/// Crates that a crate may depend on, of ours.
const OURS: [(&str, &[&str]); 5] = [
    ("world", &[]),
    ("blockcache", &["world"]),
    ("glidefs", &["world", "blockcache"]),
    ("tests", &["world", "blockcache", "glidefs"]),
    // Above all: it measures the product from outside, and parts of it.
    ("benches", &["world", "glidefs", "glidefs-tests"]),
];

const LINES_MAX: usize = 800;
/// Left-overs, in two halves so that this file does not contain them.
const LEFT_OVERS: [(&str, &str); 4] = [
    ("TO", "DO"),
    ("FIX", "ME"),
    ("XX", "X"),
    ("unimple", "mented!("),
];
const PROMISES: usize = 8;

struct Rule {
    within: &'static str,
    words: &'static [&'static str],
    except: &'static [&'static str],
    why: &'static str,
}

impl Rule {
    fn applies_to(&self, path: &str) -> bool {
        path.starts_with(self.within) && !self.except.iter().any(|part| path.starts_with(part))
    }

    fn broken_by(&self, code: &str) -> Option<&'static str> {
        let words: BTreeSet<&str> = words(code).collect();
        self.words.iter().copied().find(|word| words.contains(word))
    }
}

#[test]
fn layers_know_only_what_is_below_them() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let code = code_of(&text);
        for rule in FORBIDDEN.iter().filter(|rule| rule.applies_to(&path)) {
            if let Some(word) = rule.broken_by(&code) {
                broken.push(format!("{path}: `{word}`: {}", rule.why));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn manifests_point_downwards() {
    for (name, allowed) in OURS {
        let manifest = read(&root().join(name).join("Cargo.toml"));
        let dependencies = manifest
            .lines()
            .filter_map(|line| line.split_once(".workspace"));
        for (dependency, _) in dependencies {
            let is_tests = dependency == "glidefs-tests";
            let is_ours = is_tests || OURS.iter().any(|(ours, _)| *ours == dependency);
            assert!(
                !is_ours || allowed.contains(&dependency),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn modules_of_glidefs_name_only_what_they_may() {
    let mut broken = Vec::new();
    let mut met: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, text) in sources() {
        let Some(inside) = path.strip_prefix(MODULES_IN) else {
            continue;
        };
        if ROOTS.contains(&inside) {
            continue;
        }
        let own = inside.split(['/', '.']).next().unwrap_or_default();
        let row = MODULES.iter().find(|(module, _)| *module == own);
        let (module, allowed) =
            row.unwrap_or_else(|| panic!("{path}: `{own}` is not in the table"));
        let used = met.entry(module).or_default();
        for named in modules_named(inside, &code_of(&text)) {
            used.insert(named);
            if named != own && !allowed.contains(&named) {
                broken.push(format!("{path}: {own} must not name {named}"));
            }
        }
    }
    for (module, allowed) in MODULES {
        let used = met.get(module);
        for allowed in allowed {
            if used.is_none_or(|used| !used.contains(allowed)) {
                broken.push(format!("{module} does not name {allowed}: strike it out"));
            }
        }
        assert!(used.is_some(), "no module {module}");
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Modules at the top of glidefs that a file names, by `crate::` or by going up.
fn modules_named(inside: &str, code: &str) -> BTreeSet<&'static str> {
    // The file of a module at the top is one below the root.
    let depth = inside.split('/').count();
    let code: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let up = "super::".repeat(depth);
    let starts = ["crate::", up.as_str()];
    let mut named = BTreeSet::new();
    for start in starts {
        for (at, _) in code.match_indices(start) {
            let rest = &code[at + start.len()..];
            // `use crate::{a, b::{c}}`: what stands outside the inner braces.
            let list = match rest.strip_prefix('{') {
                Some(list) => outside_braces(list),
                None => rest
                    .split(|it: char| !(it.is_alphanumeric() || it == '_'))
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            };
            let first = list
                .split(',')
                .map(|item| item.split("::").next().unwrap_or_default().trim());
            let known = first.filter_map(|first| {
                MODULES
                    .iter()
                    .map(|(module, _)| *module)
                    .find(|module| *module == first)
            });
            named.extend(known);
        }
    }
    named
}

/// The text up to the brace that closes it, without what inner braces hold.
fn outside_braces(list: &str) -> String {
    let mut depth = 0_u32;
    let mut outside = String::new();
    for it in list.chars() {
        match it {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            _ if depth == 0 => outside.push(it),
            _ => {}
        }
    }
    outside
}

#[test]
fn pure_files_wait_for_nothing_and_ask_nobody() {
    let mut broken = Vec::new();
    let sources = sources();
    for named in PURE {
        let text = sources
            .get(named)
            .unwrap_or_else(|| panic!("no file {named}"));
        assert!(
            is_called_pure(text),
            "{named} does not call itself pure any more"
        );
    }
    let products = ["world/src/", "blockcache/src/", "glidefs/src/"];
    let pure = sources.iter().filter(|(path, text)| {
        products.iter().any(|it| path.starts_with(it)) && is_called_pure(text)
    });
    for (path, text) in pure {
        if let Some(word) = impure(text) {
            broken.push(format!("{path}: calls itself pure, and has `{word}`"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// "Pure" as a sentence of the module doc, without a "but"; what it says of other files in a list is
/// about those.
fn is_called_pure(text: &str) -> bool {
    let doc = text.lines().take_while(|line| line.starts_with("//!"));
    let doc = doc
        .map(|line| line.trim_start_matches("//!").trim())
        .filter(|line| !line.starts_with("- "))
        .collect::<Vec<_>>()
        .join(" ");
    let mut words = doc.split(' ');
    words.any(|word| ["Pure.", "Pure:", "Pure,", "Pure;"].contains(&word))
}

fn impure(text: &str) -> Option<&'static str> {
    let code = text.split("#[cfg(test)]\nmod tests {").next();
    let code = code_of(code.expect("split gives at least one part"));
    let words: BTreeSet<&str> = words(&code).collect();
    IMPURE.into_iter().find(|word| words.contains(word))
}

#[test]
fn modules_are_named_by_their_files() {
    for (path, _) in sources() {
        assert!(!path.ends_with("/mod.rs"), "{path}: use foo.rs beside foo/");
    }
}

#[test]
fn files_hold_one_idea() {
    for (path, text) in sources() {
        let lines = lines_outside_tests(&path, &text);
        assert!(
            lines <= LINES_MAX,
            "{path}: {lines} lines besides its tests; it holds two ideas"
        );
    }
}

#[test]
fn nothing_is_left_for_later() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        for (first, second) in LEFT_OVERS {
            if text.contains(&format!("{first}{second}")) {
                found.push(format!("{path}: {first}{second}"));
            }
        }
        if code_of(&text).contains("todo!") {
            found.push(format!("{path}: a body that is still to be written"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_dependency_says_why_it_is_here() {
    let manifest = read(&root().join("Cargo.toml"));
    let section = section(&manifest, "[workspace.dependencies]");
    let lines = section.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let is_ours = line.contains("{ path = ");
        let has_reason = line
            .rsplit_once(" # ")
            .is_some_and(|(_, reason)| !reason.trim().is_empty());
        assert!(is_ours || has_reason, "no reason: {line}");
    }
}

/// `docs/promises.md` has one heading per promise and names tests as `path::function`.
#[test]
fn every_promise_names_tests_that_exist() {
    let promises = read(&root().join("docs/promises.md"));
    let sections: Vec<&str> = promises.split("\n## ").skip(1).collect();
    let promised: Vec<&&str> = sections
        .iter()
        .filter(|it| it.starts_with(char::is_numeric))
        .collect();
    assert_eq!(promised.len(), PROMISES, "every promise has its heading");
    for section in sections {
        let title = section.lines().next().unwrap_or_default();
        let tests: Vec<&str> = section
            .split('`')
            .filter(|word| word.contains(".rs::"))
            .collect();
        assert!(
            !title.starts_with(char::is_numeric) || !tests.is_empty(),
            "promise `{title}` names no test"
        );
        for test in tests {
            let (path, function) = test.split_once("::").expect("filtered above");
            let function = function
                .rsplit("::")
                .next()
                .expect("split gives at least one part");
            let file = root().join(path);
            assert!(file.is_file(), "promise `{title}`: no file {path}");
            let is_there = read(&file).contains(&format!("fn {function}("));
            assert!(is_there, "promise `{title}`: no test {function} in {path}");
        }
    }
}

#[test]
fn planted_violations_are_found() {
    let unsafe_rule = &FORBIDDEN[5];
    let code = code_of("fn f() { /* unsafe */ let s = \"unsafe\"; } // unsafe");
    assert_eq!(unsafe_rule.broken_by(&code), None);
    let code = code_of("fn f() { let quote = '\"'; unsafe { g() } }");
    assert_eq!(unsafe_rule.broken_by(&code), Some("unsafe"));
    assert_eq!(unsafe_rule.broken_by("#![deny(unsafe_code)]"), None);
    let code = code_of("let a = r#\"a \" unsafe \"#; struct A<'a>(&'a u8);");
    assert_eq!(unsafe_rule.broken_by(&code), None);
    let cache_rule = &FORBIDDEN[1];
    assert!(cache_rule.applies_to("blockcache/src/log.rs"));
    assert_eq!(cache_rule.broken_by("use tokio::time;"), Some("tokio"));
    let named = |inside, code| modules_named(inside, code).into_iter().collect::<Vec<_>>();
    assert_eq!(
        named("nbd/conn.rs", "use crate::volume::Volume;"),
        ["volume"]
    );
    assert_eq!(
        named("nbd/conn.rs", "use crate::{device::{sync}, race};"),
        ["device", "race"]
    );
    assert_eq!(named("nbd/conn.rs", "super::super::sync::plan()"), ["sync"]);
    assert_eq!(named("nbd/conn.rs", "super::sync::plan()"), [""; 0]);
    let pure = "//! Decides. Pure: no more.\nfn f() {}\n";
    assert!(is_called_pure(pure) && impure(pure).is_none());
    assert!(!is_called_pure("//! Pure but for a look.\n"));
    assert!(!is_called_pure(
        "//! Acts.\n//!\n//! - `a`: decides. Pure.\n"
    ));
    assert_eq!(impure("//! Pure.\nasync fn f() {}\n"), Some("async"));
    assert_eq!(
        impure("//! Pure.\n#[cfg(test)]\nmod tests {\nasync\n}\n"),
        None
    );
    let text = "a\nb\n#[cfg(test)]\nmod tests {\n}\n";
    assert_eq!(lines_outside_tests("x/src/a.rs", text), 2);
    assert_eq!(lines_outside_tests("x/src/a/tests.rs", text), 0);
}

/// Every Rust file of the workspace, by its path from the root.
fn sources() -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    for part in ["world", "blockcache", "glidefs", "benches", "tests"] {
        collect(&root().join(part), &mut sources);
    }
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

fn collect(folder: &Path, sources: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("below the root");
            sources.insert(name.display().to_string(), read(&path));
        }
    }
}

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the workspace").to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn section<'a>(manifest: &'a str, title: &str) -> &'a str {
    let (_, rest) = manifest.split_once(title).expect("the section is there");
    rest.split("\n[")
        .next()
        .expect("split gives at least one part")
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|it: char| !(it.is_alphanumeric() || it == '_'))
}

/// Lines before the unit tests; a file of tests has none.
fn lines_outside_tests(path: &str, text: &str) -> usize {
    let is_tests = path.ends_with("/tests.rs") || path.contains("/tests/");
    if is_tests {
        return 0;
    }
    let code = text.split("#[cfg(test)]\nmod tests {").next();
    code.expect("split gives at least one part").lines().count()
}

/// The text without comments, strings and characters.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let skipped = skipped(rest, code.chars().last());
        if skipped > 0 {
            code.push(' ');
            rest = &rest[skipped..];
        } else {
            code.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    code
}

/// Length of the comment or literal that begins here; 0 where code goes on.
fn skipped(rest: &str, before: Option<char>) -> usize {
    let until = |end: &str, from: usize| {
        let found = rest[from..].find(end);
        found.map_or(rest.len(), |at| from + at + end.len())
    };
    if rest.starts_with("//") {
        return until("\n", 2);
    }
    if rest.starts_with("/*") {
        return until("*/", 2);
    }
    if rest.starts_with('"') {
        return string_length(rest);
    }
    let is_word = before.is_some_and(|it| it.is_alphanumeric() || it == '_');
    if rest.starts_with('r') && !is_word {
        let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
        if rest[1 + hashes..].starts_with('"') {
            return until(&format!("\"{}", "#".repeat(hashes)), 2 + hashes);
        }
    }
    character_length(rest)
}

fn string_length(rest: &str) -> usize {
    let mut is_escaped = false;
    for (at, it) in rest.char_indices().skip(1) {
        match it {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// A character literal, not a lifetime: those have no closing quote.
fn character_length(rest: &str) -> usize {
    let mut letters = rest.char_indices().skip(1);
    if !rest.starts_with('\'') {
        return 0;
    }
    match (letters.next(), letters.next()) {
        (Some((_, '\\')), Some((at, it))) => {
            let after = at + it.len_utf8();
            rest[after..].find('\'').map_or(0, |end| after + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}
