//! Rows of power and energy as SVG drawings. Pure: the same rows give the same bytes.
//!
//! Owns how charts look: a line of power with the band between its least and greatest, bars of energy, sparklines. Promises
//! well-formed XML whatever an alias says, a title and a description for those who cannot see it, and that a span without
//! readings is a gap in the drawing. Coordinates are whole tenths, so that no float comes between a reading and its place.
//! Leaves it to `query` which rows, and to `http` how the drawing is sent.
//!
//! The two drawings need paths, bars and texts; plotters with its SVG backend alone would add 87 KB to the binary and knows
//! neither classes (dark and light), nor titles, nor descriptions.

mod scale;

use std::fmt::{self, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::markup::Escaped;
use crate::rollup::{Period, Step, periods};
use crate::tariff::{Cost, Currency};
use crate::units::{Thousandths, UnixMillis};
use scale::{Tenths, ceiling, ticks};

/// Power over a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// When.
    pub period: Period,
    /// The mean, W.
    pub mean: Thousandths,
    /// The least and the greatest, W; none for a sum of several devices, whose extremes come at different times.
    pub band: Option<(Thousandths, Thousandths)>,
}

/// Energy of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// When.
    pub period: Period,
    /// How much, Wh.
    pub energy: Thousandths,
    /// What it cost.
    pub cost: Option<Cost>,
}

/// Whom a drawing is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file of its own, with its own colours.
    File,
    /// Part of the page, which has the colours; its values stand beside it for the page's script.
    Page,
}

/// What a drawing is of.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    /// Whose power or energy, as people call it. Anybody's text.
    pub name: &'a str,
    /// The whole width.
    pub span: Period,
    /// The length of a period.
    pub step: Step,
    /// Whose time.
    pub zone: &'a TimeZone,
    /// What costs are in.
    pub currency: Option<Currency>,
    /// Whom it is for.
    pub place: Place,
    /// What tells it from other drawings of the same page: letters and digits.
    pub id: &'a str,
}

const WIDTH: i64 = 460;
const HEIGHT: i64 = 228;
const LEFT: i64 = 50;
const RIGHT: i64 = 8;
const TOP: i64 = 30;
const BOTTOM: i64 = 24;

const STYLE: &str = "<style>svg{background:#fff;--c:#0b6bcb;--b:#bcd9f5;--g:#d5d9de;--t:#444c56}\
text{font:12px system-ui,sans-serif;fill:var(--t)}\
@media(prefers-color-scheme:dark){svg{background:#14181d;--c:#5aa9f5;--b:#234a70;--g:#39424d;--t:#b6bfca}}\
.g{stroke:var(--g);fill:none}.n{fill:var(--b)}.l{fill:none;stroke:var(--c);stroke-width:1.5}.e{fill:var(--c)}</style>";

impl Frame<'_> {
    /// Power over time, from levels in order of time.
    #[must_use]
    pub fn power(&self, levels: &[Level]) -> String {
        let top = levels.iter().map(|level| level.band.map_or(level.mean, |(_, most)| most).0).max().unwrap_or(0);
        let top = ceiling(top.max(1_000));
        let (mut svg, y) = (self.open("power", &self.describe_power(levels)), |value: Thousandths| y(value.0, top));
        if self.place == Place::Page {
            let rows = levels.iter().map(|level| {
                let band = level.band.map(|(least, most)| format!(",{},{}", least.0, most.0)).unwrap_or_default();
                format!("[{},{},{}{band}]", level.period.start.get(), level.period.end.get(), level.mean.0)
            });
            put(&mut svg, format_args!(" data-v=\"[{}]\"", rows.collect::<Vec<_>>().join(",")));
        }
        svg.push('>');
        self.write_head(&mut svg, "power", &self.describe_power(levels));
        self.write_axes(&mut svg, top, "W");
        for run in levels.chunk_by(|a, b| a.period.end == b.period.start) {
            let (mut line, mut band) = (String::new(), String::new());
            for level in run {
                let (from, to) = self.ends(level.period);
                let verb = if line.is_empty() { format!("M{from} ") } else { "V".to_owned() };
                put(&mut line, format_args!("{verb}{}H{to}", y(level.mean)));
                if let Some((_, most)) = level.band {
                    let verb = if band.is_empty() { format!("M{from} ") } else { "V".to_owned() };
                    put(&mut band, format_args!("{verb}{}H{to}", y(most)));
                }
            }
            for level in run.iter().rev() {
                if let Some((least, _)) = level.band {
                    put(&mut band, format_args!("V{}H{}", y(least), self.ends(level.period).0));
                }
            }
            if !band.is_empty() {
                put(&mut svg, format_args!("<path class=\"n\" d=\"{band}Z\"/>"));
            }
            put(&mut svg, format_args!("<path class=\"l\" d=\"{line}\"/>"));
        }
        self.close(svg, levels.is_empty())
    }

    /// Energy by period, from bars in order of time.
    #[must_use]
    pub fn energy(&self, bars: &[Bar]) -> String {
        let most = bars.iter().map(|bar| bar.energy.0).max().unwrap_or(0);
        // In Wh while that is what people say, else in kWh; the scale is in thousandths of either.
        let (unit, size) = if most < 1_000_000 { ("Wh", 1) } else { ("kWh", 1_000) };
        let top = ceiling(most.div_ceil(size).max(1_000));
        let mut svg = self.open("energy", &self.describe_energy(bars));
        if self.place == Place::Page {
            let rows = bars.iter().map(|bar| {
                let cost = bar.cost.map(|cost| format!(",{cost}")).unwrap_or_default();
                format!("[{},{},{}{cost}]", bar.period.start.get(), bar.period.end.get(), bar.energy.0)
            });
            put(&mut svg, format_args!(" data-v=\"[{}]\"", rows.collect::<Vec<_>>().join(",")));
        }
        svg.push('>');
        self.write_head(&mut svg, "energy", &self.describe_energy(bars));
        self.write_axes(&mut svg, top, unit);
        for bar in bars {
            let (from, to) = self.ends(bar.period);
            let width = to.0.saturating_sub(from.0);
            let gap = (width / 6).min(40);
            let at = y(bar.energy.0 / size, top);
            let height = Tenths((HEIGHT - BOTTOM) * 10 - at.0);
            put(
                &mut svg,
                format_args!(
                    "<rect class=\"e\" x=\"{}\" y=\"{at}\" width=\"{}\" height=\"{height}\"><title>{}: {}{}</title></rect>",
                    Tenths(from.0 + gap / 2),
                    Tenths((width - gap).max(1)),
                    Escaped(self.moment(bar.period.start, self.step)),
                    kilowatt_hours(bar.energy),
                    self.price(bar.cost)
                ),
            );
        }
        self.close(svg, bars.is_empty())
    }

    fn price(&self, cost: Option<Cost>) -> String {
        let price = cost.zip(self.currency).map(|(cost, currency)| format!(", {} {currency}", cost.cents()));
        price.unwrap_or_default()
    }

    /// The tag's beginning, without its `>`.
    fn open(&self, kind: &str, _: &str) -> String {
        let id = self.id;
        let space = if self.place == Place::File { " xmlns=\"http://www.w3.org/2000/svg\"" } else { "" };
        let size =
            if self.place == Place::File { format!(" width=\"{WIDTH}\" height=\"{HEIGHT}\"") } else { String::new() };
        format!(
            "<svg{space} class=\"chart {kind}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\"{size} role=\"img\" \
             aria-labelledby=\"{id}t {id}d\" data-from=\"{}\" data-to=\"{}\"",
            self.span.start.get(),
            self.span.end.get()
        )
    }

    fn write_head(&self, svg: &mut String, kind: &str, description: &str) {
        let what = if kind == "power" { "Power" } else { "Energy" };
        let id = self.id;
        put(svg, format_args!("<title id=\"{id}t\">{what}: {}</title>", Escaped(self.name)));
        put(svg, format_args!("<desc id=\"{id}d\">{}</desc>", Escaped(description)));
        if self.place == Place::File {
            svg.push_str(STYLE);
            put(
                svg,
                format_args!(
                    "<text x=\"{WIDTH}\" y=\"14\" dx=\"-8\" text-anchor=\"end\">{}</text>",
                    Escaped(self.name)
                ),
            );
        }
    }

    fn write_axes(&self, svg: &mut String, top: u64, unit: &str) {
        let (left, right, bottom) = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in ticks(top) {
            let at = y(tick, top);
            put(svg, format_args!("<path class=\"g\" d=\"M{left} {at}H{right}\"/>"));
            let (label, tick) = (Tenths(at.0 + 40), Thousandths(tick));
            put(
                svg,
                format_args!(
                    "<text x=\"{}\" y=\"{label}\" text-anchor=\"end\" data-n=\"{tick}\">{tick}</text>",
                    left - 6
                ),
            );
        }
        put(svg, format_args!("<text x=\"4\" y=\"13\">{unit}</text>"));
        for (at, step, whole) in self.marks() {
            let x = self.x(at);
            if whole {
                put(svg, format_args!("<path class=\"g\" d=\"M{x} {bottom}v4\"/>"));
            }
            put(
                svg,
                format_args!(
                    "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" data-t=\"{}\" data-s=\"{}\">{}</text>",
                    HEIGHT - 6,
                    at.get(),
                    mark_name(step),
                    self.mark(at, step)
                ),
            );
        }
    }

    /// Where on the axis of time something is written: the moment, what kind of it, and whether a line marks it.
    fn marks(&self) -> Vec<(UnixMillis, Step, bool)> {
        let days = self.span.end.since(self.span.start) / 86_400_000;
        let middle = |period: &Period| period.start.plus(period.end.since(period.start) / 2);
        let inside =
            |step| periods(step, self.zone, self.span.start, self.span.end).filter(|p| p.start >= self.span.start);
        match days {
            0..=2 => inside(Step::Hour)
                .filter(|hour| self.local(hour.start).hour() % 4 == 0)
                .map(|hour| (hour.start, Step::Hour, true))
                .filter(|(at, ..)| self.is_clear(*at))
                .collect(),
            3..=10 => inside(Step::Day).map(|day| (middle(&day), Step::Day, false)).collect(),
            11..=100 => {
                let days: Vec<Period> = inside(Step::Day).collect();
                let every = days.len().div_ceil(6).max(1);
                let chosen = days.iter().skip(every / 2).step_by(every);
                chosen.map(|day| (middle(day), Step::QuarterHour, false)).collect()
            }
            _ => inside(Step::Month).map(|month| (middle(&month), Step::Month, false)).collect(),
        }
    }

    /// Whether a text has room at `at`.
    fn is_clear(&self, at: UnixMillis) -> bool {
        (LEFT * 10 + 100..=(WIDTH - RIGHT) * 10 - 140).contains(&self.x(at).0)
    }

    fn mark(&self, at: UnixMillis, step: Step) -> String {
        self.format(
            at,
            match step {
                Step::Hour => "%H:%M",
                Step::Day => "%a",
                Step::QuarterHour => "%-d %b",
                Step::Month => "%b",
            },
        )
    }

    /// When a period began, as people say it.
    fn moment(&self, at: UnixMillis, step: Step) -> String {
        self.format(
            at,
            match step {
                Step::Hour | Step::QuarterHour => "%a %-d %b %H:%M",
                Step::Day => "%a %-d %b %Y",
                Step::Month => "%B %Y",
            },
        )
    }

    fn format(&self, at: UnixMillis, how: &str) -> String {
        let Ok(time) = Timestamp::from_millisecond(at.get()) else { return at.to_string() };
        time.to_zoned_datetime(self.zone.clone()).strftime(how).to_string()
    }

    fn local(&self, at: UnixMillis) -> jiff::civil::DateTime {
        self.zone.to_datetime(Timestamp::from_millisecond(at.get()).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    fn close(&self, mut svg: String, is_empty: bool) -> String {
        if is_empty {
            let (x, y) = ((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2);
            put(&mut svg, format_args!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">nothing recorded</text>"));
        }
        if self.place == Place::Page {
            put(&mut svg, format_args!("<path class=\"h\" d=\"M0 {TOP}V{}\"/>", HEIGHT - BOTTOM));
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn x(&self, at: UnixMillis) -> Tenths {
        let width = (WIDTH - LEFT - RIGHT) * 10;
        let whole = self.span.end.since(self.span.start).max(1);
        let at = at.since(self.span.start).clamp(0, whole);
        let place = i128::from(at) * i128::from(width) / i128::from(whole);
        Tenths(LEFT * 10 + i64::try_from(place).unwrap_or(width))
    }

    fn ends(&self, period: Period) -> (Tenths, Tenths) {
        (self.x(period.start), self.x(period.end))
    }

    fn describe_span(&self) -> String {
        let how = "%-d %b %Y %H:%M";
        let zone = self.zone.iana_name().unwrap_or("UTC");
        format!("{} to {} ({zone})", self.format(self.span.start, how), self.format(self.span.end, how))
    }

    fn describe_power(&self, levels: &[Level]) -> String {
        let span = self.describe_span();
        let length = |level: &Level| u64::try_from(level.period.end.since(level.period.start)).unwrap_or(0);
        let weight: u128 = levels.iter().map(|level| u128::from(length(level))).sum();
        let total: u128 = levels.iter().map(|level| u128::from(level.mean.0) * u128::from(length(level))).sum();
        let Some(mean) = total.checked_div(weight) else { return format!("{span}: nothing recorded.") };
        let mean = watts(Thousandths(u64::try_from(mean).unwrap_or(u64::MAX)));
        let least = levels.iter().map(|level| level.band.map_or(level.mean, |(least, _)| least).0).min();
        let most = levels.iter().map(|level| level.band.map_or(level.mean, |(_, most)| most).0).max();
        let (least, most) = (watts(Thousandths(least.unwrap_or(0))), watts(Thousandths(most.unwrap_or(0))));
        format!("{span}: mean {mean}, least {least}, greatest {most}.")
    }

    fn describe_energy(&self, bars: &[Bar]) -> String {
        let span = self.describe_span();
        let Some(most) = bars.iter().max_by_key(|bar| bar.energy.0) else {
            return format!("{span}: nothing recorded.");
        };
        let all = Thousandths(bars.iter().map(|bar| bar.energy.0).sum());
        let cost = bars.iter().map(|bar| bar.cost).sum::<Option<Cost>>();
        let (when, price) = (self.moment(most.period.start, self.step), self.price(cost));
        format!("{span}: {}{price} in all, most {when} with {}.", kilowatt_hours(all), kilowatt_hours(most.energy))
    }
}

/// The last hours of a device as a line of a few words' size, from levels in order of time.
#[must_use]
pub fn sparkline(levels: &[Level], span: Period) -> String {
    let (width, height) = (1_200, 320);
    let top = u128::from(levels.iter().map(|level| level.mean.0).max().unwrap_or(0).max(1_000));
    let whole = i128::from(span.end.since(span.start).max(1));
    let x = |at: UnixMillis| {
        Tenths(i64::try_from(i128::from(at.since(span.start)) * width / whole).unwrap_or(0).clamp(0, 1_200))
    };
    let y = |value: Thousandths| {
        let up = i64::try_from(u128::from(value.0) * 280 / top).unwrap_or(0);
        Tenths(height - 20 - up)
    };
    let mut path = String::new();
    for run in levels.chunk_by(|a, b| a.period.end == b.period.start) {
        for (n, level) in run.iter().enumerate() {
            let verb = if n == 0 { format!("M{} ", x(level.period.start)) } else { "V".to_owned() };
            put(&mut path, format_args!("{verb}{}H{}", y(level.mean), x(level.period.end)));
        }
    }
    format!(
        "<svg class=\"spark\" viewBox=\"0 0 120 32\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><path class=\"l\" d=\"{path}\"/></svg>"
    )
}

const fn mark_name(step: Step) -> &'static str {
    match step {
        Step::Hour => "h",
        Step::Day => "d",
        Step::QuarterHour => "m",
        Step::Month => "y",
    }
}

/// The height at which `value` of a scale up to `top` stands.
fn y(value: u64, top: u64) -> Tenths {
    let height = (HEIGHT - TOP - BOTTOM) * 10;
    let up = i128::from(value.min(top)) * i128::from(height) / i128::from(top.max(1));
    Tenths((HEIGHT - BOTTOM) * 10 - i64::try_from(up).unwrap_or(height))
}

/// Power as people read it: three digits or so.
#[must_use]
pub fn watts(power: Thousandths) -> String {
    rounded(
        power.0,
        if power.0 < 10_000 {
            2
        } else if power.0 < 100_000 {
            1
        } else {
            0
        },
    ) + " W"
}

/// Energy in Wh as people read it.
#[must_use]
pub fn kilowatt_hours(energy: Thousandths) -> String {
    let wh = energy.0.saturating_add(500) / 1_000;
    rounded(
        wh,
        if wh < 10_000 {
            3
        } else if wh < 100_000 {
            2
        } else {
            1
        },
    ) + " kWh"
}

/// Thousandths as a decimal with so many digits after the point, rounded half up.
fn rounded(thousandths: u64, digits: u32) -> String {
    let unit = 10_u64.pow(3_u32.saturating_sub(digits));
    let count = thousandths.saturating_add(unit / 2) / unit;
    let scale = 10_u64.pow(digits);
    if digits == 0 {
        return count.to_string();
    }
    format!("{}.{:0width$}", count / scale, count % scale, width = usize::try_from(digits).unwrap_or(0))
}

fn put(out: &mut String, text: fmt::Arguments<'_>) {
    let _ = out.write_fmt(text); // a String takes everything
}

#[cfg(test)]
mod tests;
