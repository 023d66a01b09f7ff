//! `cargo model`: explores all scenes, then every mistake in the scenes that must find it.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use glidefs_model::check::{Bounds, Scene, Seen, explore};
use glidefs_model::{groups, joins, owners, space};
use serde_json::{Value, json};

#[derive(Debug, Parser)]
#[command(name = "model", about = "Explores the model of a volume's protocol")]
struct Arguments {
    /// Only scenes whose name contains this.
    #[arg(long, default_value = "")]
    scene: String,
    /// Only the scenes as they should be.
    #[arg(long, conflicts_with = "only_mistakes")]
    no_mistakes: bool,
    /// Only with rules broken on purpose.
    #[arg(long)]
    only_mistakes: bool,
    /// Threads that explore.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// States of one scene at most: the memory is a few hundred bytes for each.
    #[arg(long, default_value_t = 40_000_000)]
    states_max: usize,
    /// One JSON document instead of tables.
    #[arg(long)]
    json: bool,
    /// The steps that show each mistake.
    #[arg(long)]
    steps: bool,
}

#[expect(clippy::print_stdout, reason = "the tables are the result")]
fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let seen = explored(&arguments)?;
    let fine = seen.iter().all(Seen::is_as_it_must);
    if arguments.json {
        let rows: Vec<Value> = seen.iter().map(document).collect();
        println!("{}", json!({ "fine": fine, "explored": rows }));
    } else {
        println!("{}", tables(&seen, arguments.steps));
    }
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn explored(arguments: &Arguments) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    if !arguments.only_mistakes {
        seen.extend(all_models(arguments, Rules::Kept));
    }
    if !arguments.no_mistakes {
        seen.extend(all_models(arguments, Rules::Broken));
    }
    ensure!(
        !seen.is_empty(),
        "no scene is called so; without --scene, all are explored"
    );
    Ok(seen)
}

/// Whether scenes are explored as they should be, or with each of the mistakes that must show in them.
#[derive(Clone, Copy)]
enum Rules {
    Kept,
    Broken,
}

fn all_models(arguments: &Arguments, rules: Rules) -> Vec<Seen> {
    [
        model::<owners::Scene>(arguments, rules),
        model::<space::Scene>(arguments, rules),
        model::<groups::Scene>(arguments, rules),
        model::<joins::Scene>(arguments, rules),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn model<S: Scene>(arguments: &Arguments, rules: Rules) -> Vec<Seen> {
    let bounds = Bounds {
        threads: arguments.threads,
        states_max: arguments.states_max,
    };
    let scenes = S::all().into_iter();
    let scenes = scenes.filter(|it| it.name().contains(&arguments.scene));
    let wanted = scenes.flat_map(|scene| match rules {
        Rules::Kept => vec![scene],
        Rules::Broken => {
            let finds = scene.finds().iter();
            finds.map(|it| scene.clone().with(*it)).collect()
        }
    });
    let explored = wanted.map(|scene| {
        progress(scene.name(), scene.broken_rule().as_deref());
        explore(scene, &bounds)
    });
    explored.collect()
}

#[expect(clippy::print_stderr, reason = "progress, for a person who waits")]
fn progress(scene: &str, mistake: Option<&str>) {
    eprintln!(
        "{scene}{}",
        mistake.map_or(String::new(), |it| format!(", with {it}"))
    );
}

fn tables(seen: &[Seen], steps: bool) -> String {
    let mut lines = Vec::new();
    let (broken, intact): (Vec<&Seen>, Vec<&Seen>) =
        seen.iter().partition(|it| it.mistake.is_some());
    if !intact.is_empty() {
        lines.push("| model | scene | states | longest way | all seen | properties |".to_owned());
        lines.push("|---|---|---:|---:|---|---|".to_owned());
    }
    for it in intact {
        let bad = it.properties.iter().filter(|property| !property.holds);
        let bad: Vec<&str> = bad.map(|property| property.property).collect();
        let verdict = match bad.as_slice() {
            [] => format!("all {} hold", it.properties.len()),
            bad => format!("BROKEN: {}", bad.join("; ")),
        };
        lines.push(format!(
            "| {} | {} | {} | {} | {} | {verdict} |",
            it.model,
            it.scene,
            it.states,
            it.depth,
            if it.is_complete { "yes" } else { "NO" },
        ));
        lines.extend(it.found().into_iter().flat_map(|found| found.steps.clone()));
    }
    if !broken.is_empty() {
        lines.push("\n| model | scene | mistake | found by | steps | states |".to_owned());
        lines.push("|---|---|---|---|---:|---:|".to_owned());
    }
    for it in broken {
        let mistake = it.mistake.as_deref().unwrap_or_default();
        let (by, length) = match it.found() {
            Some(found) => (found.property, found.steps.len().to_string()),
            None => ("NOT FOUND", "-".to_owned()),
        };
        let (model, scene, states) = (it.model, it.scene, it.states);
        lines.push(format!(
            "| {model} | {scene} | {mistake} | {by} | {length} | {states} |"
        ));
        if steps {
            lines.extend(it.found().into_iter().flat_map(|found| found.steps.clone()));
        }
    }
    lines.join("\n")
}

fn document(seen: &Seen) -> Value {
    let properties = seen
        .properties
        .iter()
        .map(|it| json!({ "property": it.property, "holds": it.holds, "steps": it.steps }));
    json!({
        "model": seen.model,
        "scene": seen.scene,
        "mistake": seen.mistake,
        "states": seen.states,
        "longest_way": seen.depth,
        "all_seen": seen.is_complete,
        "fine": seen.is_as_it_must(),
        "properties": properties.collect::<Vec<_>>(),
    })
}
