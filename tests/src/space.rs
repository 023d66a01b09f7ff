//! What a store holds for each byte that is live, over time: the points of a run, simulated (`sim::SpaceRun`) or real
//! (`overwrites`), and what is said of them.

use std::fmt::Write as _;

/// Wanted of stored over live bytes: as a mean once it has settled, and of every point.
pub const MEAN_MAX: f64 = 1.25;
pub const PEAK_MAX: f64 = 1.5;

/// What the store held at one moment.
#[derive(Clone, Copy, Debug)]
pub struct SpacePoint {
    /// Since everything was written once.
    pub seconds: u64,
    /// Of all objects of the volume.
    pub stored_bytes: u64,
    pub live_bytes: u64,
    /// Sent to the store since the start, and written by the client.
    pub sent_bytes: u64,
    pub written_bytes: u64,
    /// Objects deleted since the start.
    pub collected_objects: u64,
}

impl SpacePoint {
    /// Stored over live bytes.
    pub fn stored(&self) -> f64 {
        ratio(self.stored_bytes, self.live_bytes)
    }
}

/// Stored over live bytes in a whole run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// Of the last two thirds.
    pub mean: f64,
    pub peak: f64,
}

impl Ratios {
    pub fn of(points: &[SpacePoint]) -> Self {
        assert!(!points.is_empty(), "nothing was seen");
        let steady = &points[points.len() / 3..];
        let sum: f64 = steady.iter().map(SpacePoint::stored).sum();
        Self {
            mean: sum / steady.len() as f64,
            peak: points.iter().map(SpacePoint::stored).fold(0.0, f64::max),
        }
    }

    pub fn are_held(&self) -> bool {
        self.mean <= MEAN_MAX && self.peak <= PEAK_MAX
    }
}

/// One row for each point; of more than so many points, rows at even distances and the last.
pub fn table(points: &[SpacePoint], rows_max: usize) -> String {
    let mut text = String::from(
        "| minutes | written / live | stored / live | sent / written | deleted objects |\n|---:|---:|---:|---:|---:|\n",
    );
    let step = points.len().div_ceil(rows_max).max(1);
    let last = points.len().saturating_sub(1);
    let rows = points.iter().enumerate();
    for (_, point) in rows.filter(|(at, _)| at.is_multiple_of(step) || *at == last) {
        writeln!(
            text,
            "| {} | {:.2} | {:.3} | {:.2} | {} |",
            point.seconds / 60,
            ratio(point.written_bytes, point.live_bytes),
            point.stored(),
            ratio(point.sent_bytes, point.written_bytes),
            point.collected_objects
        )
        .expect("a String takes everything");
    }
    text
}

/// Stored over live, from 1.0 to 1.5, over time; lines at 1.25 and 1.5. `what` is said below.
pub fn plot(points: &[SpacePoint], what: &str) -> String {
    const WIDTH: f64 = 800.0;
    const HEIGHT: f64 = 300.0;
    let last = points.last().map_or(1, |point| point.seconds.max(1));
    let x = |seconds: u64| 50.0 + WIDTH * ratio(seconds, last);
    let y = |value: f64| 20.0 + HEIGHT * (1.5 - value.clamp(1.0, 1.5)) / 0.5;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"880\" height=\"360\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"880\" height=\"360\" fill=\"white\"/>\n",
    );
    for value in [1.0, 1.125, 1.25, 1.375, 1.5] {
        let (at, colour) = (y(value), if value == MEAN_MAX { "#c00" } else { "#ccc" });
        svg += &format!(
            "<line x1=\"50\" x2=\"850\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\"/><text x=\"8\" y=\"{:.1}\">{value:.3}</text>\n",
            at + 4.0
        );
    }
    let line: Vec<String> = points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x(point.seconds), y(point.stored())))
        .collect();
    svg += &format!(
        "<polyline fill=\"none\" stroke=\"#06c\" stroke-width=\"2\" points=\"{}\"/>\n",
        line.join(" ")
    );
    svg += &format!("<text x=\"50\" y=\"345\">{what}</text>\n</svg>\n");
    svg
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A point each ten seconds; what is stored for 100 live bytes.
    fn points(stored: &[u64]) -> Vec<SpacePoint> {
        let point = |(at, stored_bytes): (u64, &u64)| SpacePoint {
            seconds: at * 10,
            stored_bytes: *stored_bytes,
            live_bytes: 100,
            sent_bytes: 300,
            written_bytes: 150,
            collected_objects: at,
        };
        (0..).zip(stored).map(point).collect()
    }

    #[test]
    fn the_first_third_counts_for_the_peak_and_not_for_the_mean() {
        let ratios = Ratios::of(&points(&[150, 150, 125, 125, 125, 125]));
        assert!((ratios.mean - 1.25).abs() < 1e-9 && (ratios.peak - 1.5).abs() < 1e-9);
        assert!(ratios.are_held());
        assert!(!Ratios::of(&points(&[151, 150, 125, 125, 125, 125])).are_held());
        assert!(!Ratios::of(&points(&[126, 126, 126])).are_held());
    }

    #[test]
    fn a_long_table_is_thinned_and_keeps_its_last_row() {
        let points = points(&[110; 20]);
        assert_eq!(table(&points, usize::MAX).lines().count(), 2 + 20);
        let short = table(&points, 7);
        assert_eq!(short.lines().count(), 2 + 8);
        assert_eq!(
            short.lines().nth(3),
            Some("| 0 | 1.50 | 1.100 | 2.00 | 3 |")
        );
        assert_eq!(
            short.lines().last(),
            Some("| 3 | 1.50 | 1.100 | 2.00 | 19 |")
        );
    }

    #[test]
    fn a_plot_has_a_place_for_each_point() {
        let svg = plot(&points(&[100, 125, 150]), "over a while");
        assert!(
            svg.contains("points=\"50.0,320.0 450.0,170.0 850.0,20.0\""),
            "{svg}"
        );
        assert!(svg.contains("over a while"));
    }
}
