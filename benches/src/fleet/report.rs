//! The numbers as Markdown, each beside what is wanted.

use std::fmt::{Result, Write as _};
use std::time::Duration;

use glidefs_benches::conditions::Conditions;
use glidefs_tests::bucket::Held;
use glidefs_tests::sizes;

use crate::budget::{
    ACTIVE_SHARE, CLAIMED_DOLLARS, GB_MONTH_DOLLARS, GET_DOLLARS, PUT_DOLLARS, STORED_GB,
};
use crate::forks::Block;
use crate::site::SYNC_DELAY_MS;
use crate::{budget, forks, idle};

const CONDITIONS: &str = "servers of its own for each part, encrypted, lz4, the S3 endpoint of the tests on the loopback without latency";
const MIB: f64 = (1_u64 << 20) as f64;
const MEDIAN: usize = 500;
const MOST: usize = 1000;

/// All that one command found.
#[derive(Debug)]
pub(crate) struct Report {
    conditions: Conditions,
    /// Of sync windows with writes, to be priced.
    shares: Vec<f64>,
    pub(crate) forks: Option<forks::Found>,
    pub(crate) idle: Option<idle::Found>,
    pub(crate) budget: Option<budget::Found>,
    pub(crate) sizes: Option<sizes::Found>,
    /// Why parts were not measured.
    pub(crate) failures: Vec<String>,
}

impl Report {
    pub(crate) fn new(shares: &[f64]) -> anyhow::Result<Self> {
        Ok(Self {
            conditions: Conditions::begin(CONDITIONS)?,
            shares: shares.to_vec(),
            forks: None,
            idle: None,
            budget: None,
            sizes: None,
            failures: Vec::new(),
        })
    }

    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        self.conditions.end()
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("a String takes everything");
        text
    }

    fn write(&self, text: &mut String) -> Result {
        writeln!(text, "{}", self.conditions)?;
        if let Some(found) = &self.forks {
            write_forks(text, found)?;
            write_opened(text, found)?;
        }
        if let Some(found) = &self.idle {
            write_idle(text, found)?;
        }
        if let Some(found) = &self.budget {
            write_budget(text, found)?;
            write_prices(text, found, &self.shares)?;
        }
        if let Some(found) = &self.sizes {
            write_grown(text, found)?;
            write_trims(text, found)?;
        }
        for failure in &self.failures {
            writeln!(text, "\nNot measured: {failure}")?;
        }
        Ok(())
    }
}

fn write_forks(text: &mut String, found: &forks::Found) -> Result {
    let mib = found.written_bytes as f64 / MIB;
    writeln!(
        text,
        "### Forks\n\nOf a 100 GiB image with {mib:.0} MiB in scattered pages, and of a 1 MiB export. Control: create, read, create by a plain client.\n\n\
         | forks | p50 ms | p99 ms | max ms | PUT + GET + LIST for each | server RSS, MiB | control p50 ms | to control |\n|---|{}",
        "---:|".repeat(7)
    )?;
    write_block(text, "small", &found.small)?;
    for block in &found.image {
        write_block(text, "image", block)?;
    }
    let Some((first, last)) = found.image.first().zip(found.image.last()) else {
        return Ok(());
    };
    let of = |block: &Block| quantile(&block.seconds, MEDIAN);
    let control = |block: &Block| quantile(&block.control, MEDIAN);
    writeln!(
        text,
        "\np50 of the last {} to the first: **{:.2}** (1.00 wanted; control {:.2}). p50 of 100 GiB to 1 MiB: **{:.2}** (1.00 wanted).",
        first.seconds.len(),
        of(last) / of(first),
        control(last) / control(first),
        of(first) / of(&found.small),
    )
}

fn write_block(text: &mut String, parent: &str, block: &Block) -> Result {
    let (first, count) = (block.first, block.seconds.len());
    let ms = |permille| quantile(&block.seconds, permille) * 1e3;
    let each = |requests: u64| requests as f64 / count as f64;
    let (puts, gets) = (each(block.requests.puts), each(block.requests.gets));
    let lists = each(block.requests.lists);
    let (median, late, longest) = (ms(MEDIAN), ms(990), ms(MOST));
    let mib = block.resident_bytes as f64 / MIB;
    let control = quantile(&block.control, MEDIAN) * 1e3;
    let to_control = median / control;
    writeln!(
        text,
        "| {parent}, {count} from {first} | {median:.2} | {late:.2} | {longest:.2} | {puts:.2} + {gets:.2} + {lists:.2} | {mib:.0} | {control:.2} | {to_control:.2} |"
    )
}

fn write_opened(text: &mut String, found: &forks::Found) -> Result {
    let (count, requests) = (found.opened.len(), found.open_requests);
    let head = "| p50 | max |\n|---|---:|---:|";
    writeln!(text, "\n| {count} opened, ms {head}")?;
    let steps = ["connected", "first page of the parent's", "1 MiB read"];
    for (step, what) in steps.iter().enumerate() {
        let seconds: Vec<f64> = found.opened.iter().map(|it| it[step]).collect();
        let ms = |permille| quantile(&seconds, permille) * 1e3;
        writeln!(text, "| {what} | {:.2} | {:.2} |", ms(MEDIAN), ms(MOST))?;
    }
    let each = |requests: u64| requests as f64 / count as f64;
    writeln!(
        text,
        "\nRequests for each of them: {:.1} PUT, {:.1} GET, {:.1} LIST.",
        each(requests.puts),
        each(requests.gets),
        each(requests.lists),
    )
}

fn write_idle(text: &mut String, found: &idle::Found) -> Result {
    let (exports, seconds) = (found.exports, found.seconds);
    writeln!(
        text,
        "\n### Idle\n\n{exports} exports of 1 GiB, connected, 1 MiB written to each by {} KiB at depth 32, drained; watched for {seconds} s.\n",
        found.write_kib
    )?;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let (memory, empty) = (found.memory, mb(found.empty.anonymous_bytes));
    let anonymous = mb(memory.anonymous_bytes);
    let each_kb = (anonymous - empty) * 1e3 / exports as f64;
    let wake_ups = found.wake_ups as f64;
    write_figures(
        text,
        &[
            ("RSS, MB", mb(memory.resident_bytes), "at most 100"),
            ("anonymous, MB", anonymous, ""),
            ("anonymous before any export, MB", empty, ""),
            ("anonymous for each export, kB", each_kb, ""),
            ("peak of RSS, MB", mb(memory.peak_bytes), ""),
            ("requests to the store", found.requests as f64, "0"),
            ("CPU s", found.cpu_seconds, ""),
            ("wake-ups of all threads", wake_ups, ""),
            ("wake-ups a second", wake_ups / seconds as f64, ""),
        ],
    )
}

fn write_budget(text: &mut String, found: &budget::Found) -> Result {
    let (busy, mib, seconds) = (found.busy, found.volume_mib, found.seconds);
    let rate = found.writes as f64 / seconds;
    writeln!(
        text,
        "\n### Budget\n\nOne export of {mib} MiB, {rate:.0} random writes of 4 KiB a second for {seconds:.0} s; half of each page compresses away; sync_delay_ms = {SYNC_DELAY_MS}.\n"
    )?;
    let ratio = "PUT / (2 for each sync + sent / 3.2 MB)";
    write_figures(
        text,
        &[
            ("syncs", found.syncs as f64, ""),
            ("PUT", busy.puts as f64, ""),
            ("GET", busy.gets as f64, ""),
            ("LIST", busy.lists as f64, "0"),
            ("DELETE", busy.deletes as f64, ""),
            ("MB sent", busy.sent_bytes as f64 / 1e6, ""),
            (ratio, found.of_budget(), "at most 1.05"),
            ("requests at idle", found.idle.total() as f64, "0"),
        ],
    )
}

fn write_figures(text: &mut String, figures: &[(&str, f64, &str)]) -> Result {
    writeln!(text, "| figure | found | wanted |\n|---|---:|---:|")?;
    for (what, value, wanted) in figures {
        writeln!(text, "| {what} | {value:.2} | {wanted} |")?;
    }
    Ok(())
}

fn write_prices(text: &mut String, found: &budget::Found, shares: &[f64]) -> Result {
    let (window, sync) = (found.window_seconds(), found.sync_dollars());
    let (put, get) = (PUT_DOLLARS * 1e3, GET_DOLLARS * 1e3);
    let storage = STORED_GB * GB_MONTH_DOLLARS;
    writeln!(
        text,
        "\nDollars a month = 30 days x {ACTIVE_SHARE} active / {window:.2} s a window x share of windows with writes x ${sync:.7} a sync + what idle time asks for.\n\
         Prices: Amazon's list for S3 Standard in us-east-1, ${put:.3} for 1,000 PUT or LIST, ${get:.4} for 1,000 GET, DELETE free; {STORED_GB} GB of storage are ${storage:.2} more.\n\n\
         | share of windows with writes | requests, $ a month | the seed claims | to claim |\n|---:|---:|---:|---:|"
    )?;
    for share in shares {
        let dollars = found.month_dollars(*share);
        let ratio = dollars / CLAIMED_DOLLARS;
        writeln!(
            text,
            "| {share} | {dollars:.3} | {CLAIMED_DOLLARS:.2} | {ratio:.2} |"
        )?;
    }
    Ok(())
}

fn write_grown(text: &mut String, found: &sizes::Found) -> Result {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    writeln!(
        text,
        "\n### Resize\n\nBy the API, under a connected client, which goes on with the size that it knows; the next one is told the new size, and writes the first page and the last.\n\n\
         | to | order until it is published, ms | connect until the size is told, ms |\n|---:|---:|---:|"
    )?;
    for step in &found.grown {
        let size = whole_units(step.size_bytes);
        let (order, connect) = (ms(step.order), ms(step.connect));
        writeln!(text, "| {size} | {order:.2} | {connect:.2} |")?;
    }
    let woken = &found.woken;
    writeln!(
        text,
        "\nOn another node with an empty cache: connected in {:.2} ms, {} pages read back as written or zeros, BLOCK_STATUS of all of it in {:.0} ms (sequential requests). It was exact after each step.",
        ms(woken.connect),
        woken.pages,
        ms(woken.status)
    )
}

fn write_trims(text: &mut String, found: &sizes::Found) -> Result {
    let (plan, trims) = (&found.plan, &found.trims);
    let stretch = whole_units(plan.stretch_bytes);
    let (part, whole) = (
        whole_units(plan.part_bytes),
        whole_units(plan.size_bytes_max),
    );
    writeln!(
        text,
        "\n### TRIM\n\nOne published page of 4 KiB in each {stretch} of what is trimmed. From the first request to the last answer, at depth 64. BLOCK_STATUS named exactly the pages that were left, before and after each was published.\n\n\
         | what | requests | samples | p50 ms | max ms | wanted |\n|---|---:|---:|---:|---:|---|"
    )?;
    let (some, all) = (trims.part_requests, trims.whole_requests);
    let rows = [
        (part.as_str(), some, &trims.part, "well under 100"),
        (whole.as_str(), all, &trims.whole, ""),
        ("control: as many of 4 KiB", some, &trims.small, ""),
        ("control: write of 4 KiB", 1, &trims.write, ""),
        ("control: flush behind it", 1, &trims.flush, ""),
    ];
    for (what, requests, times, wanted) in rows {
        let seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        let ms = |permille| quantile(&seconds, permille) * 1e3;
        let (count, median, longest) = (seconds.len(), ms(MEDIAN), ms(MOST));
        writeln!(
            text,
            "| {what} | {requests} | {count} | {median:.2} | {longest:.2} | {wanted} |"
        )?;
    }
    writeln!(
        text,
        "\n| the bucket holds | objects | MB |\n|---|---:|---:|"
    )?;
    let rows: [(&str, Held); 3] = [
        ("before the last trim of all", trims.written),
        ("once that is published", trims.trimmed),
        ("once `glidefs gc run` is done", trims.collected),
    ];
    for (when, held) in rows {
        let mb = held.bytes as f64 / 1e6;
        writeln!(text, "| {when} | {} | {mb:.3} |", held.objects)?;
    }
    Ok(())
}

/// Of a size that is whole in the largest unit that fits.
fn whole_units(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 40 => format!("{} TiB", bytes >> 40),
        _ if bytes >= 1 << 30 => format!("{} GiB", bytes >> 30),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// The value that so many in a thousand do not exceed; 0 of nothing.
fn quantile(values: &[f64], permille: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * permille / 1000).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_their_largest_unit() {
        let told = [4 << 20, 1 << 30, 16 << 40].map(whole_units);
        assert_eq!(told, ["4 MiB", "1 GiB", "16 TiB"]);
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        let values: Vec<f64> = (0..101).rev().map(f64::from).collect();
        let found = [MEDIAN, 990, MOST].map(|permille| quantile(&values, permille));
        assert_eq!(found, [50.0, 99.0, 100.0]);
    }
}
