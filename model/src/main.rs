//! `cargo model`: explores all scenes, then every mistake in the scenes that must find it.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use glidefs_model::check::{Bounds, Seen, explore};
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
    let bounds = Bounds {
        threads: arguments.threads,
        states_max: arguments.states_max,
    };
    let mut seen = Vec::new();
    for intact in [true, false] {
        if (intact && arguments.only_mistakes) || (!intact && arguments.no_mistakes) {
            continue;
        }
        for scene in owners::scenes() {
            let mistakes = mistakes(intact, scene.finds);
            for mistake in mistakes.filter(|_| scene.name.contains(&arguments.scene)) {
                let mut scene = scene.clone();
                scene.mistake = mistake;
                let name = ("owners", scene.name, named(mistake));
                progress(name.1, name.2.as_deref());
                seen.push(explore(name, scene, &bounds));
            }
        }
        for scene in space::scenes() {
            let mistakes = mistakes(intact, scene.finds);
            for mistake in mistakes.filter(|_| scene.name.contains(&arguments.scene)) {
                let mut scene = scene.clone();
                scene.mistake = mistake;
                let name = ("space", scene.name, named(mistake));
                progress(name.1, name.2.as_deref());
                seen.push(explore(name, scene, &bounds));
            }
        }
        for scene in groups::scenes() {
            let mistakes = mistakes(intact, scene.finds);
            for mistake in mistakes.filter(|_| scene.name.contains(&arguments.scene)) {
                let mut scene = scene.clone();
                scene.mistake = mistake;
                let name = ("groups", scene.name, named(mistake));
                progress(name.1, name.2.as_deref());
                seen.push(explore(name, scene, &bounds));
            }
        }
        for scene in joins::scenes() {
            let mistakes = mistakes(intact, scene.finds);
            for mistake in mistakes.filter(|_| scene.name.contains(&arguments.scene)) {
                let mut scene = scene.clone();
                scene.mistake = mistake;
                let name = ("joins", scene.name, named(mistake));
                progress(name.1, name.2.as_deref());
                seen.push(explore(name, scene, &bounds));
            }
        }
    }
    ensure!(
        !seen.is_empty(),
        "no scene is called so; without --scene, all are explored"
    );
    Ok(seen)
}

fn mistakes<M: Copy + 'static>(
    intact: bool,
    finds: &'static [M],
) -> impl Iterator<Item = Option<M>> {
    let broken = finds.iter().copied().map(Some).filter(move |_| !intact);
    intact.then_some(None).into_iter().chain(broken)
}

fn named<M: ValueEnum>(mistake: Option<M>) -> Option<String> {
    let value = mistake?.to_possible_value()?;
    Some(value.get_name().to_owned())
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
