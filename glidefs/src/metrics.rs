//! Prometheus metrics, as OpenMetrics text, made anew for each scrape from the same document that the
//! API shows: there is one count of everything, and it lives on the shard.
//!
//! Names carry base units; counters end in `_total` (the encoder adds it). The families are in
//! [`families`], and each stands in `docs/metrics.md`. Labels are bounded: exports by the document, the
//! others by what the code knows; what never occurred has no row.

mod families;
mod process;
#[cfg(test)]
mod tests;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::control::{ExportMeters, MetersDocument};
use crate::meter::{BOUNDS_NS, Latency};
pub use process::Process;

const NS_PER_SECOND: f64 = 1e9;

/// The text of one scrape.
pub fn render(meters: MetersDocument, process: Process) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { meters, process }));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("writing to a string cannot fail");
    text
}

/// Name, help, value.
type Row<T, V> = (&'static str, &'static str, fn(&T) -> V);

#[derive(Debug)]
struct Scrape {
    meters: MetersDocument,
    process: Process,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let into = &mut encoder;
        self.server(into)?;
        self.store(into)?;
        for (name, help, value) in families::EXPORT_COUNTERS {
            let row = |export: &ExportMeters| ConstCounter::new(value(export));
            self.per_export(into, (name, help, MetricType::Counter), row)?;
        }
        for (name, help, value) in families::EXPORT_GAUGES {
            let row = |export: &ExportMeters| ConstGauge::new(value(export));
            self.per_export(into, (name, help, MetricType::Gauge), row)?;
        }
        self.requests(into)
    }
}

impl Scrape {
    fn server(&self, into: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let version = [("version", self.meters.server.version.as_str())];
        let (name, help) = families::BUILD_INFO;
        let mut build = into.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(1_i64).encode(build.encode_family(&version)?)?;
        for (name, help, value) in families::PROCESS_GAUGES {
            let metric = into.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value(&self.process)).encode(metric)?;
        }
        let (name, help) = families::PROCESS_CPU;
        let metric = into.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(self.process.cpu_seconds).encode(metric)?;
        for (name, help, value) in families::SERVER_GAUGES {
            let metric = into.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value(&self.meters)).encode(metric)?;
        }
        for (name, help, value) in families::SERVER_COUNTERS {
            let metric = into.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value(&self.meters)).encode(metric)?;
        }
        Ok(())
    }

    fn store(&self, into: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let store = &self.meters.store;
        let (name, help) = families::STORE_REQUESTS;
        let mut family = into.encode_descriptor(name, help, None, MetricType::Counter)?;
        for row in &store.requests {
            let labels = [("kind", row.kind.as_str()), ("outcome", &row.outcome)];
            ConstCounter::new(row.count).encode(family.encode_family(&labels)?)?;
        }
        let (name, help) = families::STORE_LATENCY;
        let mut family = into.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for row in &store.latency {
            let labels = [("kind", row.kind.as_str()), ("outcome", &row.outcome)];
            histogram(family.encode_family(&labels)?, &row.latency)?;
        }
        Ok(())
    }

    fn per_export<M: EncodeMetric>(
        &self,
        into: &mut DescriptorEncoder<'_>,
        (name, help, kind): (&str, &str, MetricType),
        row: impl Fn(&ExportMeters) -> M,
    ) -> fmt::Result {
        let mut family = into.encode_descriptor(name, help, None, kind)?;
        for meters in &self.meters.exports {
            let label = [("export", meters.export.name.as_str())];
            row(meters).encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }

    /// Those with more labels than the export.
    fn requests(&self, into: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = families::EXPORT_STORE_REQUESTS;
        let mut family = into.encode_descriptor(name, help, None, MetricType::Counter)?;
        for meters in &self.meters.exports {
            for row in &meters.store {
                let labels = [
                    ("export", meters.export.name.as_str()),
                    ("kind", &row.kind),
                    ("outcome", &row.outcome),
                ];
                ConstCounter::new(row.count).encode(family.encode_family(&labels)?)?;
            }
        }
        let (name, help) = families::EXPORT_LATENCY;
        let mut family = into.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for meters in &self.meters.exports {
            let latency = &meters.latency;
            for (operation, latency) in [
                ("read", &latency.read),
                ("write", &latency.write),
                ("flush", &latency.flush),
                ("zero", &latency.zero),
            ] {
                let labels = [
                    ("export", meters.export.name.as_str()),
                    ("operation", operation),
                ];
                histogram(family.encode_family(&labels)?, latency)?;
            }
        }
        let (name, help) = families::EXPORT_SYNC;
        let mut family = into.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for meters in &self.meters.exports {
            let label = [("export", meters.export.name.as_str())];
            histogram(family.encode_family(&label)?, &meters.latency.sync)?;
        }
        Ok(())
    }
}

/// Nothing at all where nothing was counted: of 1,000 idle exports that is 100,000 rows less.
fn histogram(mut metric: MetricEncoder<'_>, latency: &Latency) -> fmt::Result {
    if latency.count() == 0 {
        return Ok(());
    }
    let seconds = |ns: u64| float(ns) / NS_PER_SECOND;
    let bounds = BOUNDS_NS.into_iter().map(seconds).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(latency.counts.iter().copied()).collect();
    let sum = seconds(latency.sum_ns);
    metric.encode_histogram::<NoLabelSet>(sum, latency.count(), &buckets, None)
}

/// Exact up to 2^53 (8 PiB); beyond that the nearest number, as every reader of metrics does.
fn float(count: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "metrics are floating-point numbers to whoever reads them"
    )]
    let nearest = count as f64;
    nearest
}
