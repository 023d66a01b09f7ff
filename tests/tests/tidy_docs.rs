//! What people read in a bad hour is true: each ERROR names a step, and what runbooks, alerts and the
//! dashboard name exists. That the commands parse: `glidefs/src/cli.rs`; that metrics are documented:
//! `glidefs/src/metrics/tests.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

/// What a message may tell a person to do where no runbook is needed.
const STEPS: [&str; 6] = ["replace", "raise", "restart", "restore", "free", "check"];
const RUNBOOKS: &str = "docs/runbooks/";
/// Each runbook says these, in this order.
const PARTS: [&str; 4] = [
    "**You see**",
    "**What it means.**",
    "**What to do**",
    "**It is over**",
];
/// What is quoted of a log is found by at least so many words.
const QUOTE_WORDS_MIN: usize = 4;
/// Metrics that are Prometheus's own.
const OF_PROMETHEUS: [&str; 1] = ["up"];

#[test]
fn every_error_in_the_log_names_what_to_do() {
    let mut found = 0;
    let mut silent = Vec::new();
    for (path, text) in products() {
        for message in errors_in(&text) {
            found += 1;
            if !names_a_step(&message) {
                silent.push(format!("{path}: {message}"));
            }
        }
    }
    assert!(
        found > 20,
        "only {found} errors were found: is this test blind?"
    );
    assert!(
        silent.is_empty(),
        "name a runbook (docs/runbooks/…) or a step ({STEPS:?}):\n{}",
        silent.join("\n")
    );
}

fn names_a_step(message: &str) -> bool {
    let runbook = message.split(RUNBOOKS).nth(1);
    let runbook = runbook
        .and_then(|rest| rest.split_once(".md"))
        .map(|(it, _)| it);
    if let Some(name) = runbook {
        return root().join(format!("{RUNBOOKS}{name}.md")).is_file();
    }
    let mut words = message.split(|it: char| !it.is_alphanumeric());
    words.any(|word| STEPS.contains(&word))
}

/// The text of each `tracing::error!`; of one that prints a variable, the literal before it in the file.
fn errors_in(text: &str) -> Vec<String> {
    let mut messages = Vec::new();
    for (at, start) in text.match_indices("tracing::error!(") {
        let literals = literals_of_call(&text[at + start.len()..]);
        let message = literals.concat();
        if message.trim_matches(['{', '}', '?', ':']) == "why" {
            let before = text[..at]
                .rfind("format!(")
                .map_or("", |from| &text[from + 8..at]);
            messages.push(literals_of_call(before).concat());
        } else {
            messages.push(message);
        }
    }
    messages
}

/// The string literals up to the parenthesis that closes a call.
fn literals_of_call(text: &str) -> Vec<String> {
    let mut literals = Vec::new();
    let mut depth = 1;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '(' => depth += 1,
            ')' if depth == 1 => break,
            ')' => depth -= 1,
            '"' => {
                let mut literal = String::new();
                while let Some(inside) = letters.next() {
                    match inside {
                        '"' => break,
                        '\\' => literal.extend(letters.next().filter(|it| *it != '\n')),
                        other => literal.push(other),
                    }
                }
                literals.push(literal);
            }
            _ => {}
        }
    }
    literals
}

#[test]
fn runbooks_that_are_named_exist() {
    let mut named = BTreeSet::new();
    let docs = documents().into_iter();
    for (path, text) in products().into_iter().chain(docs) {
        let rest = text.split(RUNBOOKS).skip(1);
        for name in rest.filter_map(|rest| rest.split_once(".md").map(|(name, _)| name)) {
            if name.chars().all(|it| it.is_ascii_lowercase() || it == '-') {
                named.insert(name.to_owned());
                let is_there = root().join(format!("{RUNBOOKS}{name}.md")).is_file();
                assert!(is_there, "{path}: no {RUNBOOKS}{name}.md");
            }
        }
    }
    for (path, _) in runbooks() {
        let name = Path::new(&path)
            .file_stem()
            .expect("a file")
            .to_string_lossy();
        let overview = read(&root().join("docs/runbooks/README.md"));
        assert!(
            overview.contains(&format!("({name}.md)")),
            "{path} is not in the overview"
        );
        assert!(named.contains(name.as_ref()), "nothing leads to {path}");
    }
}

#[test]
fn runbooks_say_all_that_is_needed_and_quote_literally() {
    let sources: Vec<String> = products()
        .into_values()
        .map(|text| unwrapped(&text))
        .collect();
    let commands = read(&root().join("glidefs/src/cli/top/model.rs"));
    assert!(
        commands.contains("('s', Sort::Requests"),
        "bill-too-high names this key"
    );
    for (path, text) in runbooks() {
        let places: Vec<_> = PARTS.iter().map(|part| text.find(part)).collect();
        let is_ordered = places.is_sorted() && places.iter().all(Option::is_some);
        assert!(is_ordered, "{path}: must say, in order: {PARTS:?}");
        for quote in quotes_in(&text) {
            let is_there = sources.iter().any(|source| source.contains(&quote));
            assert!(is_there, "{path}: the code does not say `{quote}`");
        }
    }
}

/// What stands in backticks and is long enough to be a sentence; doubled ones may hold single ones.
fn quotes_in(text: &str) -> Vec<String> {
    let flat = unwrapped(&outside_blocks(text));
    let mut quotes = Vec::new();
    let mut rest = flat.as_str();
    while let Some(at) = rest.find('`') {
        let ticks = rest[at..].chars().take_while(|it| *it == '`').count();
        let inner = &rest[at + ticks..];
        let Some(end) = inner.find(&"`".repeat(ticks)) else {
            break;
        };
        quotes.push(inner[..end].trim().to_owned());
        rest = &inner[end + ticks..];
    }
    let is_sentence = |quote: &String| {
        let has_code = ["{", "=", "(", "/", "…", "|"]
            .iter()
            .any(|it| quote.contains(it));
        !has_code && !quote.starts_with("glidefs") && quote.split(' ').count() >= QUOTE_WORDS_MIN
    };
    quotes.retain(is_sentence);
    quotes
}

#[test]
fn metrics_that_are_named_exist() {
    let mut checked = 0;
    let alerts = read(&root().join("docs/alerts/glidefs.yml"));
    let dashboard = read(&root().join("docs/dashboards/glidefs.json"));
    let pages = [("alerts", alerts), ("dashboard", dashboard)].into_iter();
    let pages = pages.map(|(name, text)| (name.to_owned(), text));
    for (path, text) in pages.chain(runbooks()) {
        for name in metrics_in(&text) {
            checked += 1;
            let is_prose = path.starts_with(RUNBOOKS);
            assert!(
                is_metric(&name) || is_prose && is_histogram(&name),
                "{path}: no metric `{name}` in docs/metrics.md"
            );
        }
    }
    assert!(
        checked > 60,
        "only {checked} names were found: is this test blind?"
    );
    assert!(!is_metric("glidefs_export_colour") && !is_metric("glidefs_export_reads"));
}

fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_'));
    let named = words.filter(|word| word.starts_with("glidefs_") || word.starts_with("process_"));
    named.map(str::to_owned).collect()
}

fn is_histogram(family: &str) -> bool {
    is_metric(&format!("{family}_count"))
}

/// As in the tables of the manual; a histogram also by its parts.
fn is_metric(name: &str) -> bool {
    let manual = read(&root().join("docs/metrics.md"));
    let is_row = |name: &str, kind: &str| {
        let row = format!("| `{name}` | {kind}");
        manual.lines().any(|line| line.starts_with(&row))
    };
    let mut parts = ["_bucket", "_count", "_sum"].iter();
    is_row(name, "counter")
        || is_row(name, "gauge")
        || parts.any(|part| {
            let family = name.strip_suffix(part);
            family.is_some_and(|family| is_row(family, "histogram"))
        })
}

#[test]
fn every_alert_says_how_long_how_bad_what_and_where_to_read() {
    let text = read(&root().join("docs/alerts/glidefs.yml"));
    let documents = YamlLoader::load_from_str(&text).expect("the rules are YAML");
    let groups = documents[0]["groups"].as_vec().expect("groups");
    let rules: Vec<&Yaml> = groups
        .iter()
        .flat_map(|group| group["rules"].as_vec().expect("rules"))
        .collect();
    assert!(rules.len() >= 10, "{} rules", rules.len());
    let mut names = BTreeSet::new();
    for rule in rules {
        let of = |value: &Yaml, what: &str| {
            let text = value.as_str().unwrap_or_default();
            assert!(!text.is_empty(), "no {what} in {rule:?}");
            text.to_owned()
        };
        let name = of(&rule["alert"], "name");
        assert!(names.insert(name.clone()), "{name} twice");
        let held = of(&rule["for"], "for");
        let number: Result<u32, _> = held.trim_end_matches(['s', 'm', 'h']).parse();
        assert!(number.is_ok(), "{name}: for {held}");
        let severity = of(&rule["labels"]["severity"], "severity");
        assert!(
            ["page", "ticket"].contains(&severity.as_str()),
            "{name}: {severity}"
        );
        of(&rule["annotations"]["summary"], "summary");
        let runbook = of(&rule["annotations"]["runbook"], "runbook");
        assert!(root().join(&runbook).is_file(), "{name}: no {runbook}");
        let expr = of(&rule["expr"], "expr");
        let first = expr.split(['{', ' ', '(']).next().unwrap_or_default();
        let is_own = !metrics_in(&expr).is_empty();
        assert!(is_own || OF_PROMETHEUS.contains(&first), "{name}: {expr}");
    }
}

#[test]
fn the_dashboard_has_panels_that_ask_for_something() {
    let text = read(&root().join("docs/dashboards/glidefs.json"));
    let dashboard: Value = serde_json::from_str(&text).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(
            ids.insert(panel["id"].as_u64().expect("an id")),
            "{title}: id twice"
        );
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title} asks nothing");
        for target in targets {
            let expr = target["expr"].as_str().expect("an expression");
            assert!(!metrics_in(expr).is_empty(), "{title}: {expr}");
            let balance = |open, close| expr.matches(open).count() == expr.matches(close).count();
            assert!(
                balance('(', ')') && balance('{', '}') && balance('[', ']'),
                "{title}: {expr}"
            );
        }
    }
    assert!(ids.len() > 20, "{} panels", ids.len());
}

/// Keys of the configuration, as `section.key`.
#[test]
fn settings_that_runbooks_name_exist() {
    let manual = read(&root().join("docs/configuration.md"));
    let mut checked = 0;
    for (path, text) in runbooks() {
        let words = text.split('`').skip(1).step_by(2);
        for word in words {
            let key = word.split([' ', '=']).next().unwrap_or_default();
            let section = key.split('.').next().unwrap_or_default();
            let is_key = ["cache", "storage", "servers", "log"].contains(&section);
            if !is_key || !key.contains('.') {
                continue;
            }
            checked += 1;
            assert!(is_setting(&manual, key), "{path}: no setting `{key}`");
        }
    }
    assert!(
        checked > 5,
        "only {checked} settings were found: is this test blind?"
    );
    assert!(is_setting(&manual, "cache.dir") && !is_setting(&manual, "cache.url"));
}

/// The manual has a table below each section's name.
fn is_setting(manual: &str, key: &str) -> bool {
    let (section, name) = key.rsplit_once('.').expect("seen by the caller");
    let table = manual.split(&format!("\n`[{section}]`")).nth(1);
    let table = table.and_then(|rest| rest.split("\n`[").next());
    table.is_some_and(|table| table.contains(&format!("\n| `{name}` |")))
}

#[test]
fn planted_silence_is_found() {
    let errors =
        errors_in("tracing::error!(export = %f(1), why, \"it is \\\"bad\\\"\"); f(\"other\")");
    assert_eq!(errors, ["it is \"bad\""]);
    let printed = "let why = format!(\"bad; restart\", x()); tracing::error!(\"{why}\");";
    assert_eq!(errors_in(printed), ["bad; restart"]);
    assert!(!names_a_step("the disk is bad") && names_a_step("bad; replace the disk"));
    assert!(!names_a_step("see docs/runbooks/no-such-page.md"));
    assert!(names_a_step("see (docs/runbooks/fsync-failed.md)"));
    let text = "a `one two three four` ``five `six` seven eight`` `short one`\n```\n`in a block is not`\n```\n";
    assert_eq!(
        quotes_in(text),
        ["one two three four", "five `six` seven eight"]
    );
}

/// Without code blocks.
fn outside_blocks(text: &str) -> String {
    let parts = text.split("```").step_by(2);
    parts.collect::<Vec<_>>().join(" ")
}

/// Lines that were broken for width, as one: in prose and in literals alike.
fn unwrapped(text: &str) -> String {
    let joined = text.replace("\\\n", " ");
    joined.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Rust files of what ships.
fn products() -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    for part in ["world/src", "blockcache/src", "glidefs/src"] {
        collect(&root().join(part), "rs", &mut sources);
    }
    sources.retain(|path, _| !path.ends_with("/tests.rs") && !path.contains("/tests/"));
    assert!(sources.len() > 50, "the sources were not found");
    sources
}

fn documents() -> BTreeMap<String, String> {
    let mut documents = BTreeMap::new();
    collect(&root().join("docs"), "md", &mut documents);
    collect(&root().join("docs"), "yml", &mut documents);
    documents
}

fn runbooks() -> Vec<(String, String)> {
    let runbooks = documents().into_iter();
    let runbooks = runbooks.filter(|(path, _)| path.starts_with(RUNBOOKS));
    runbooks
        .filter(|(path, _)| !path.ends_with("README.md"))
        .collect()
}

fn collect(folder: &Path, kind: &str, into: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, kind, into);
        } else if path.extension().is_some_and(|extension| extension == kind) {
            let name = path.strip_prefix(root()).expect("below the root");
            into.insert(name.display().to_string(), read(&path));
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
