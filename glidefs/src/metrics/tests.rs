use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::control::testing;

fn text() -> String {
    let meters = testing::meters(1000, vec![testing::export("vm-a")]);
    render(meters, Process::default())
}

#[test]
fn the_text_is_open_metrics_by_convention() {
    let text = text();
    for line in [
        "# TYPE glidefs_export_writes counter",
        "glidefs_export_writes_total{export=\"vm-a\"} 5.0",
        "glidefs_export_dirty_age_seconds{export=\"vm-a\"} 1.5",
        "glidefs_export_published_timestamp_seconds{export=\"vm-a\"} 1795132800.0",
        "glidefs_export_store_requests_total{export=\"vm-a\",kind=\"create\",outcome=\"ok\"} 2",
        "glidefs_export_request_duration_seconds_count{export=\"vm-a\",operation=\"read\"} 4",
        "glidefs_store_requests_total{kind=\"get\",outcome=\"retry\"} 1",
        "glidefs_store_request_duration_seconds_bucket{le=\"0.0002\",kind=\"create\",outcome=\"answered\"} 2",
        "glidefs_store_request_duration_seconds_bucket{le=\"+Inf\",kind=\"create\",outcome=\"answered\"} 2",
        "glidefs_store_request_duration_seconds_count{kind=\"get\",outcome=\"failed\"} 1",
        "glidefs_dirty_bytes 4096.0",
        "glidefs_log_stopped 0.0",
        "glidefs_build_info{version=\"0.1.0\"} 1",
        "process_cpu_seconds_total 0.0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_never_occurred_has_no_rows() {
    let mut export = testing::export("vm-a");
    export.latency = Default::default();
    export.store.clear();
    let text = render(testing::meters(0, vec![export]), Process::default());
    let rows = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(rows("glidefs_export_request_duration_seconds"), 0);
    assert_eq!(rows("glidefs_export_store_requests"), 0);
    assert_eq!(rows("glidefs_export_writes_total"), 1);
}

/// One row per family in `docs/metrics.md`: name, kind, labels and help as the code has them.
#[test]
fn every_family_is_in_the_manual_and_every_one_of_the_manual_exists() {
    let text = text();
    let manual = include_str!("../../../docs/metrics.md");
    let written: BTreeSet<&str> = manual
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let exported = families_of(&text);
    assert!(exported.len() > 40, "{}", exported.len());
    let missing: Vec<&String> = exported
        .iter()
        .filter(|row| !written.contains(row.as_str()))
        .collect();
    let exported: BTreeSet<&str> = exported.iter().map(String::as_str).collect();
    let stale: Vec<&&str> = written.difference(&exported).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "put into docs/metrics.md: {missing:#?}\nstrike out: {stale:#?}"
    );
}

fn families_of(text: &str) -> BTreeSet<String> {
    let mut helps = BTreeMap::new();
    let mut kinds = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            helps.insert(name, help.trim_end_matches('.'));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            kinds.push(rest.split_once(' ').expect("a type"));
        }
    }
    let row = |(name, kind): &(&str, &str)| {
        let labels = labels_of(text, name);
        let suffix = if *kind == "counter" { "_total" } else { "" };
        format!("| `{name}{suffix}` | {kind} | {labels} | {} |", helps[name])
    };
    kinds.iter().map(row).collect()
}

/// Of the first sample of a family that has some; without the bound of a bucket.
fn labels_of(text: &str, name: &str) -> String {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let of_family = |line: &&str| {
        let sample = line.split(['{', ' ']).next().unwrap_or_default();
        let suffix = sample.strip_prefix(name);
        suffix.is_some_and(|suffix| ["", "_total", "_bucket"].contains(&suffix))
    };
    let sample = samples.clone().find(of_family);
    let sample = sample.unwrap_or_else(|| panic!("no sample of {name}"));
    let inner = sample
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    let Some((labels, _)) = inner else {
        return String::new();
    };
    let names = labels
        .split(',')
        .filter_map(|label| label.split('=').next())
        .filter(|label| *label != "le");
    names.collect::<Vec<_>>().join(", ")
}
