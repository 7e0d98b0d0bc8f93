//! The result of a load: one flat JSON object on one line.

use std::fmt::Write as _;

use crate::histogram::Histogram;

/// Named numbers, in the order in which they were added.
#[derive(Default)]
pub struct Report(String);

impl Report {
    /// Adds a whole number.
    pub fn count(&mut self, name: &str, value: u64) {
        let _ = write!(self.0, ",\"{name}\":{value}");
    }

    /// Adds a number, rounded to three decimals; one that is not finite becomes 0.
    pub fn number(&mut self, name: &str, value: f64) {
        let value = if value.is_finite() { value } else { 0.0 };
        let _ = write!(self.0, ",\"{name}\":{value:.3}");
    }

    /// Adds the percentiles of a histogram in microseconds, as `p50_us`, `p99_us` and `p999_us`.
    pub fn percentiles(&mut self, times: &Histogram) {
        self.number("p50_us", times.percentile(0.5));
        self.number("p99_us", times.percentile(0.99));
        self.number("p999_us", times.percentile(0.999));
    }

    /// Writes the object and a line end to standard output.
    pub fn print(&self) {
        println!("{{{}}}", self.0.trim_start_matches(','));
    }
}
