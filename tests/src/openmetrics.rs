//! Judges OpenMetrics text by the rules that a scraper relies on, and reads values out of it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// Samples by name and labels as they were written.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    samples: BTreeMap<(String, String), f64>,
    /// Name to type.
    pub families: BTreeMap<String, String>,
}

impl Exposition {
    /// The text of one scrape; an error names the line that breaks a rule.
    pub fn parse(text: &str) -> Result<Self> {
        let body = text
            .strip_suffix("# EOF\n")
            .context("the text must end with `# EOF`")?;
        let mut reading = Reading::default();
        for line in body.lines() {
            reading
                .line(line)
                .with_context(|| format!("line `{line}`"))?;
        }
        reading.found.check_histograms()?;
        Ok(reading.found)
    }

    /// The value of a sample, with its labels as `name="value"` in the order of the text.
    pub fn value(&self, name: &str, labels: &str) -> Option<f64> {
        let key = (name.to_owned(), labels.to_owned());
        self.samples.get(&key).copied()
    }

    /// The sum over all labels.
    pub fn sum(&self, name: &str) -> f64 {
        let of_name = self.samples.iter().filter(|((it, _), _)| it == name);
        of_name.map(|(_, value)| value).sum()
    }

    /// The sum over those whose labels hold this value.
    pub fn sum_of(&self, name: &str, value: &str) -> f64 {
        let value = format!("=\"{value}\"");
        let samples = self.samples.iter();
        let chosen = samples.filter(|((it, labels), _)| it == name && labels.contains(&value));
        chosen.map(|(_, value)| value).sum()
    }

    /// Buckets grow, the last is `+Inf` and equals the count, and there is a sum.
    fn check_histograms(&self) -> Result<()> {
        let histograms = self.families.iter().filter(|(_, it)| *it == "histogram");
        for (family, _) in histograms {
            let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
            let bucket = format!("{family}_bucket");
            for ((_, labels), count) in self.samples.iter().filter(|((it, _), _)| *it == bucket) {
                let (bound, rest) = split_bound(labels)?;
                series.entry(rest).or_default().push((bound, *count));
            }
            for (labels, mut buckets) in series {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                let what = format!("{family}{{{labels}}}");
                let grows = buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1);
                ensure!(grows, "{what}: buckets must be cumulative");
                let last = buckets.last().context("no bucket")?;
                ensure!(last.0 == f64::INFINITY, "{what}: no bucket +Inf");
                let count = self.value(&format!("{family}_count"), &labels);
                ensure!(count == Some(last.1), "{what}: count {count:?}");
                let sum = self.value(&format!("{family}_sum"), &labels);
                ensure!(sum.is_some_and(|sum| sum >= 0.0), "{what}: sum {sum:?}");
            }
        }
        Ok(())
    }
}

/// The text so far.
#[derive(Debug, Default)]
struct Reading {
    found: Exposition,
    helped: BTreeSet<String>,
    /// The family whose samples may come now.
    family: Option<(String, String)>,
}

impl Reading {
    fn line(&mut self, line: &str) -> Result<()> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').context("no help text")?;
            ensure!(!help.trim().is_empty(), "an empty help text");
            ensure!(self.helped.insert(name.to_owned()), "helped twice");
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("no type")?;
            ensure!(
                ["counter", "gauge", "histogram"].contains(&kind),
                "type {kind}"
            );
            ensure!(is_name(name), "not a name");
            ensure!(self.helped.contains(name), "a type without help");
            let before = self.found.families.insert(name.into(), kind.into());
            ensure!(before.is_none(), "a family must be in one piece");
            self.family = Some((name.to_owned(), kind.to_owned()));
            return Ok(());
        }
        ensure!(!line.starts_with('#'), "an unknown comment");
        self.sample(line)
    }

    fn sample(&mut self, line: &str) -> Result<()> {
        let (name, labels, value) = split_sample(line)?;
        let (family, kind) = self.family.as_ref().context("a sample before its type")?;
        let suffix = name
            .strip_prefix(family.as_str())
            .with_context(|| format!("a sample in the middle of {family}"))?;
        let allowed: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        ensure!(allowed.contains(&suffix), "a {kind} has no `{suffix}`");
        check_labels(labels)?;
        let value: f64 = value.parse().context("not a number")?;
        ensure!(value.is_finite(), "{value}");
        ensure!(kind == "gauge" || value >= 0.0, "a {kind} below 0");
        let key = (name.to_owned(), labels.to_owned());
        let before = self.found.samples.insert(key, value);
        ensure!(before.is_none(), "the same sample twice");
        Ok(())
    }
}

fn split_sample(line: &str) -> Result<(&str, &str, &str)> {
    if let Some((name, rest)) = line.split_once('{') {
        let (labels, value) = rest.rsplit_once("} ").context("no closing brace")?;
        return Ok((name, labels, value));
    }
    let (name, value) = line.split_once(' ').context("no value")?;
    Ok((name, "", value))
}

fn check_labels(labels: &str) -> Result<()> {
    let mut names = BTreeSet::new();
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (name, value) = label.split_once('=').context("a label without a value")?;
        let inner = value.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
        let inner = inner.context("a label's value without quotes")?;
        ensure!(!inner.contains(['"', '\n']), "a label that is not escaped");
        ensure!(is_name(name) && names.insert(name), "label {name}");
    }
    Ok(())
}

fn split_bound(labels: &str) -> Result<(f64, String)> {
    let mut bound = None;
    let mut rest = Vec::new();
    for label in labels.split(',') {
        match label
            .strip_prefix("le=\"")
            .and_then(|it| it.strip_suffix('"'))
        {
            Some("+Inf") => bound = Some(f64::INFINITY),
            Some(number) => bound = Some(number.parse()?),
            None => rest.push(label),
        }
    }
    match bound {
        Some(bound) => Ok((bound, rest.join(","))),
        None => bail!("a bucket without a bound: {labels}"),
    }
}

fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    let starts = letters.next().is_some_and(|it| it.is_ascii_alphabetic());
    starts && letters.all(|it| it.is_ascii_alphanumeric() || it == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a What.\n# TYPE a counter\na_total{x=\"1\"} 2\n# HELP h What.\n# TYPE h histogram\n\
                        h_sum 1.5\nh_count 3\nh_bucket{le=\"0.1\"} 1\nh_bucket{le=\"+Inf\"} 3\n# EOF\n";

    #[test]
    fn good_text_is_read() -> Result<()> {
        let found = Exposition::parse(GOOD)?;
        assert_eq!(found.value("a_total", "x=\"1\""), Some(2.0));
        assert_eq!(found.sum("h_bucket"), 4.0);
        Ok(())
    }

    #[test]
    fn each_broken_rule_is_found() {
        for (good, bad) in [
            ("# EOF\n", ""),
            ("a_total{", "a{"),
            ("x=\"1\"", "x=1"),
            ("x=\"1\"", "x=\"1\",x=\"2\""),
            (" 2\n", " two\n"),
            (" 2\n", " -2\n"),
            (" 2\n", " 2\na_total{x=\"1\"} 2\n"),
            ("# HELP a What.\n", ""),
            ("h_count 3", "h_count 4"),
            ("le=\"+Inf\"} 3", "le=\"+Inf\"} 0"),
            ("h_bucket{le=\"+Inf\"} 3\n", ""),
            ("h_sum 1.5\n", ""),
            ("# TYPE h histogram", "# TYPE a histogram"),
        ] {
            let text = GOOD.replacen(good, bad, 1);
            assert_ne!(text, GOOD, "{good}");
            assert!(Exposition::parse(&text).is_err(), "{good} -> {bad}");
        }
    }
}
