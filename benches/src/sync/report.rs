//! The numbers as one table, with what each is held against.

use std::fmt::Write as _;

use anyhow::Result;
use glidefs_benches::conditions::Conditions;
use glidefs_benches::process::CpuParts;

use crate::case::Case;
use crate::control::{Computing, Plain};
use crate::run::{Idle, Measured};

const GIB: f64 = (1_u64 << 30) as f64;

/// One case with its controls.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) case: Case,
    pub(crate) runs: Vec<Run>,
    /// Why the others were not measured.
    pub(crate) failures: Vec<String>,
}

/// One run, and right behind it, so that a slow minute meets all three: the same bytes put plainly,
/// and the loops over the same content.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) sync: Measured,
    pub(crate) plain: Plain,
    pub(crate) computing: Computing,
}

/// All that one command found.
#[derive(Debug)]
pub(crate) struct Report {
    conditions: Conditions,
    pub(crate) rows: Vec<Row>,
    pub(crate) idle: Option<(Case, Idle)>,
}

impl Run {
    fn gib(&self) -> f64 {
        self.sync.bytes as f64 / GIB
    }

    fn megabytes_per_second(&self) -> f64 {
        self.sync.bytes as f64 / 1e6 / self.sync.longest()
    }

    /// 1.00: no slower than the client alone with bytes that lie ready.
    fn to_plain(&self) -> f64 {
        self.plain.seconds / self.sync.longest()
    }

    fn cpu(&self) -> f64 {
        self.sync.cpu.sum() / self.gib()
    }

    /// 1.00: no more than a loop over the same bytes and the client alone.
    fn to_control(&self, case: &Case) -> f64 {
        self.cpu() / (self.computing.needed(case) + self.plain.cpu_seconds / self.gib())
    }
}

impl Row {
    fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        let mut found: Vec<f64> = self.runs.iter().map(of).collect();
        assert!(!found.is_empty(), "every case ran at least once");
        found.sort_by(f64::total_cmp);
        found[found.len() / 2]
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        if self.runs.is_empty() {
            return writeln!(text, "| {} | not measured |{}", self.case, " |".repeat(10));
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let part = |of: fn(CpuParts) -> f64| self.median(|run| of(run.sync.cpu) / run.gib());
        let company = match self.case.exports {
            1 => String::new(),
            _ => format!(
                "{:.2} / {:.2}",
                self.median(|run| run.sync.shortest()),
                self.median(|run| run.sync.longest())
            ),
        };
        writeln!(
            text,
            "| {} | {:.0} | {:.2} | {:.2} | {:.2} + {:.2} + {:.2} | {:.2} | {:.0} | {:.0} | {:.2} | {:.0} + {:.0} | {:.2} | {company} |",
            self.case,
            self.median(Run::megabytes_per_second),
            self.median(Run::to_plain),
            self.median(Run::cpu),
            part(|cpu| cpu.compute),
            part(|cpu| cpu.edge),
            part(|cpu| cpu.shard),
            self.median(|run| run.to_control(&self.case)),
            self.median(|run| run.sync.puts as f64 / run.gib()),
            self.median(|run| run.sync.others as f64 / run.gib()),
            self.median(|run| run.sync.stored_bytes as f64 / run.sync.bytes as f64),
            self.median(|run| mib(run.sync.before_bytes)),
            self.median(|run| mib(run.sync.peak_bytes.saturating_sub(run.sync.before_bytes))),
            self.median(|run| run.sync.endpoint_cpu / run.gib()),
        )
    }
}

impl Report {
    pub(crate) fn new(conditions: String) -> Result<Self> {
        Ok(Self {
            conditions: Conditions::begin(conditions)?,
            rows: Vec::new(),
            idle: None,
        })
    }

    pub(crate) fn finish(&mut self) -> Result<()> {
        self.conditions.end()
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("a String takes everything");
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "{}", self.conditions)?;
        writeln!(
            text,
            "| case | MB/s | to plain PUTs | CPU s/GiB | of it compute + edge + shard | to control CPU | PUTs/GiB | other requests/GiB | stored | memory before + drain, MiB | store's CPU s/GiB | first / last export, s |"
        )?;
        let rules = "---:|".repeat(11);
        writeln!(text, "|---|{rules}")?;
        for row in &self.rows {
            row.write(text)?;
        }
        for row in &self.rows {
            for failure in &row.failures {
                writeln!(text, "\nNot measured: {}, {failure}", row.case)?;
            }
        }
        self.write_computing(text)?;
        if let Some((case, idle)) = &self.idle {
            writeln!(
                text,
                "\nIdle ({case}; connected, clean, {} s): {} requests to the store, {:.2} CPU s.",
                idle.seconds, idle.requests, idle.cpu_seconds
            )?;
        }
        Ok(())
    }

    /// The loops on one core, of each kind those of its first case.
    fn write_computing(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "\n| one core in a loop, s/GiB | compress | AES-256-GCM | BLAKE3 | SHA-256 | stored |\n|---|---:|---:|---:|---:|---:|"
        )?;
        let mut told = Vec::new();
        for row in self.rows.iter().filter(|row| !row.runs.is_empty()) {
            let kib = row.case.pattern.frame_bytes() >> 10;
            let (content, codec) = (row.case.content, row.case.codec.name());
            let name = format!("{content}, {codec}, frames of {kib} KiB");
            if told.contains(&name) {
                continue;
            }
            let of = |part: fn(&Computing) -> f64| row.median(|run| part(&run.computing));
            writeln!(
                text,
                "| {name} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
                of(|it| it.compress),
                of(|it| it.seal),
                of(|it| it.hash),
                of(|it| it.sha256),
                of(|it| it.stored),
            )?;
            told.push(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case;

    fn run(seconds: f64) -> Run {
        Run {
            sync: Measured {
                bytes: 1 << 30,
                seconds: vec![seconds, seconds / 2.0],
                cpu: CpuParts {
                    shard: 0.5,
                    edge: 0.5,
                    compute: 2.0,
                },
                endpoint_cpu: 1.0,
                puts: 330,
                others: 1,
                segments: 328,
                stored_bytes: 1 << 29,
                peak_bytes: 50 << 20,
                before_bytes: 30 << 20,
            },
            plain: Plain {
                seconds: 1.0,
                cpu_seconds: 0.5,
            },
            computing: Computing {
                compress: 0.5,
                seal: 0.25,
                hash: 0.25,
                sha256: 9.0,
                stored: 0.5,
            },
        }
    }

    #[test]
    fn ratios_are_to_the_controls_of_the_same_run() {
        let mut report = Report::new("a test".to_owned()).expect("this machine has facts");
        report.rows.push(Row {
            case: case::short()[3],
            runs: vec![run(4.0), run(2.0), run(1.0)],
            failures: Vec::new(),
        });
        report.rows.push(Row {
            case: case::short()[0],
            runs: Vec::new(),
            failures: vec!["run 1: the disk was busy".to_owned()],
        });
        let text = report.markdown();
        let row = "| 537 | 0.50 | 3.00 | 2.00 + 0.50 + 0.50 | 2.00 | 330 | 1 | 0.50 | 30 + 20 | 1.00 |  |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("not measured |"), "{text}");
        assert!(text.contains("the disk was busy"), "{text}");
    }
}
