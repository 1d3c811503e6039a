//! The parts of a page, written one after the other.

use std::fmt::{self, Write};

use crate::chart::{Level, kilowatt_hours, sparkline, watts};
use crate::http::App;
use crate::http::page::{Charts, SCRIPT, STYLE, time, together};
use crate::markup::Escaped;
use crate::poll::fleet::{Plug, Presence};
use crate::query::rollups::Row;
use crate::query::summary::Summary;
use crate::query::view::Range;
use crate::reading::DeviceId;
use crate::rollup::{Period, Step};
use crate::tariff::Cost;
use crate::units::{Thousandths, UnixMillis};

/// What something cost.
pub(super) type Money = Cost;

/// A page in the making.
pub(super) struct Doc {
    html: String,
    currency: String,
}

impl Doc {
    pub fn begin(app: &App, title: &str, range: Range) -> Self {
        let mut doc = Self {
            html: String::with_capacity(64 * 1024),
            currency: app.tariff.currency.map(|currency| currency.to_string()).unwrap_or_default(),
        };
        let zone = app.zone.iana_name().unwrap_or("UTC");
        doc.put(format_args!(
            "<!doctype html>\n<html lang=\"en\" data-zone=\"{}\" data-currency=\"{}\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <noscript><meta http-equiv=\"refresh\" content=\"30\"></noscript>\n\
             <title>{}</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <a class=\"skip\" href=\"#main\">To the content</a>\n\
             <header><a class=\"home\" href=\"/?range={}\" data-nav>wattd</a>\
             <span id=\"state\" role=\"status\"></span></header>\n<main id=\"main\" tabindex=\"-1\">\n",
            Escaped(zone),
            Escaped(doc.currency.clone()),
            Escaped(title),
            range.name(),
        ));
        doc
    }

    pub fn end(mut self) -> String {
        self.put(format_args!(
            "</main>\n<footer><a href=\"/api/v1/\">API</a> <a href=\"/api/v1/devices\">devices</a> \
             <a href=\"/api/v1/readings?format=csv\" download=\"readings.csv\">readings of 24 h as CSV</a></footer>\n\
             <script>{SCRIPT}</script>\n</body>\n</html>\n"
        ));
        self.html
    }

    pub fn put(&mut self, text: fmt::Arguments<'_>) {
        let _ = self.html.write_fmt(text); // a String takes everything
    }

    /// Energy, in mWh.
    fn energy(&self, energy: u64) -> String {
        format!("<span data-mwh=\"{energy}\">{}</span>", kilowatt_hours(Thousandths(energy)))
    }

    fn money(&self, cost: Option<Cost>) -> String {
        cost.map(|cost| format!("<span data-cost=\"{cost}\">{} {}</span>", cost.cents(), self.currency))
            .unwrap_or_default()
    }

    /// What all plugs use now and used today.
    pub fn totals(&mut self, app: &App, today: &[Summary], charge: Option<Cost>) {
        let live = today.iter().filter_map(|one| one.who.latest.as_ref()).filter(|latest| latest.online);
        let power: u64 = live.map(|latest| u64::from(latest.reading.power.get())).sum();
        let (energy, cost) = together(today);
        let plugs = app.fleet.borrow().plugs().count();
        let online = app.fleet.borrow().plugs().filter(|plug| plug.presence == Presence::Online).count();
        self.put(format_args!(
            "<section class=\"totals\" aria-label=\"All plugs\">\n<div class=\"total\"><span class=\"label\">Now</span>\
             <strong id=\"total\" data-mw=\"{power}\">{}</strong></div>\n",
            watts(Thousandths(power))
        ));
        let energy = self.energy(energy);
        self.put(format_args!("<div><span class=\"label\">Today</span><strong>{energy}</strong></div>\n"));
        if cost.is_some() {
            let (cost, charge) = (self.money(cost), self.money(charge));
            let charge = if charge.is_empty() { charge } else { format!("<small>+ {charge} standing charge</small>") };
            self.put(format_args!(
                "<div><span class=\"label\">Cost today</span><strong>{cost}</strong>{charge}</div>\n"
            ));
        }
        let word = if plugs == 1 { "plug" } else { "plugs" };
        self.put(format_args!(
            "<div><span class=\"label\">Online</span><strong>{online} of {plugs}</strong><small>{word}</small></div>\n</section>\n"
        ));
    }

    pub fn newborn(&mut self) {
        self.put(format_args!(
            "<p class=\"note\">Recording has just begun: charts fill as readings come in, and nothing of the past is known. \
             The first bar stands after some minutes.</p>\n"
        ));
    }

    /// The links to other ranges. `more` is what else stays in the address.
    pub fn ranges(&mut self, path: &str, range: Range, more: &str) {
        self.put(format_args!("<nav class=\"ranges\" aria-label=\"Range\">"));
        for (name, other) in Range::WORDS {
            let here = if other == range { " aria-current=\"true\"" } else { "" };
            let said = match other {
                Range::Day => "24 hours",
                Range::Week => "7 days",
                Range::Month => "30 days",
                Range::Year => "12 months",
            };
            self.put(format_args!("<a href=\"{path}?range={name}{more}\" data-nav{here}>{said}</a>"));
        }
        self.put(format_args!("</nav>\n"));
    }

    pub fn together_or_apart(&mut self, path: &str, range: Range, apart: bool) {
        let here = |is: bool| if is { " aria-current=\"true\"" } else { "" };
        let name = range.name();
        self.put(format_args!(
            "<nav class=\"ranges\" aria-label=\"Outlets\"><a href=\"{path}?range={name}\" data-nav{}>together</a>\
             <a href=\"{path}?range={name}&amp;outlets=apart\" data-nav{}>apart</a></nav>\n",
            here(!apart),
            here(apart)
        ));
    }

    /// Power and energy, with their sum and a link to the rows.
    pub fn charts(&mut self, app: &App, name: &str, charts: &Charts, csv: &str) {
        let energy: u64 = charts.bars.iter().map(|bar| bar.energy.0).sum();
        let cost = charts.bars.iter().map(|bar| bar.cost).sum::<Option<Cost>>().filter(|_| app.tariff.is_set());
        let (power_step, energy_step) = (charts.range.power_step(), charts.range.energy_step());
        let power = charts.frame(app, name, power_step, "p").power(&charts.levels);
        let bars = charts.frame(app, name, energy_step, "e").energy(&charts.bars);
        let by = match energy_step {
            Step::QuarterHour => "quarter hour",
            Step::Hour => "hour",
            Step::Day => "day",
            Step::Month => "month",
        };
        let (energy, cost) = (self.energy(energy), self.money(cost));
        let cost = if cost.is_empty() { cost } else { format!(" &middot; {cost}") };
        self.put(format_args!(
            "<section class=\"charts\" aria-label=\"Charts\">\n<figure><figcaption>Power</figcaption>\n{power}</figure>\n\
             <figure><figcaption>Energy by {by}: {energy}{cost}</figcaption>\n{bars}</figure>\n</section>\n"
        ));
        self.csv(csv, charts);
    }

    pub fn csv(&mut self, csv: &str, charts: &Charts) {
        let step = match charts.range.power_step() {
            Step::QuarterHour => "15m",
            Step::Hour => "1h",
            Step::Day => "1d",
            Step::Month => "1mo",
        };
        let (start, end) = (charts.span.start.get(), charts.span.end.get());
        self.put(format_args!(
            "<p class=\"csv\"><a href=\"{csv}step={step}&amp;start={start}&amp;end={end}&amp;format=csv\" \
             download=\"wattd-{}.csv\">CSV of what is shown</a></p>\n",
            charts.range.name()
        ));
    }

    /// One outlet's power, beside those of the others.
    pub fn apart(&mut self, app: &App, (n, id): (usize, DeviceId), name: &str, charts: &Charts, levels: &[Level]) {
        let key = format!("o{n}");
        let drawing = charts.frame(app, name, charts.range.power_step(), &key).power(levels);
        self.put(format_args!(
            "<figure class=\"apart\"><figcaption><a href=\"/plug/{id}?range={}\" data-nav><bdi>{}</bdi></a></figcaption>\n{drawing}</figure>\n",
            charts.range.name(),
            Escaped(name)
        ));
    }

    /// A card for each plug.
    pub fn cards(&mut self, app: &App, today: &[Summary], day: &[Row], span: Period, now: UnixMillis) {
        let fleet = app.fleet.borrow();
        self.put(format_args!("<h2>Plugs</h2>\n<ul class=\"cards\">\n"));
        for plug in fleet.plugs() {
            let of_plug = |one: &&Summary| one.who.id.plug == plug.facts.mac;
            let own: Vec<&Summary> = today.iter().filter(of_plug).collect();
            let rows: Vec<Row> = day.iter().filter(|row| row.device.plug == plug.facts.mac).copied().collect();
            self.card(app, plug, &own, &sparkline(&crate::http::drawing::levels(&rows, 1, now), span), now);
        }
        self.put(format_args!("</ul>\n"));
    }

    fn card(&mut self, app: &App, plug: &Plug, own: &[&Summary], spark: &str, now: UnixMillis) {
        let id = DeviceId::plug(plug.facts.mac);
        let class = class_of(plug);
        self.put(format_args!(
            "<li class=\"card{class}\" data-plug=\"{id}\"><h3><a href=\"/plug/{id}\" data-nav><bdi>{}</bdi></a></h3>\n",
            Escaped(plug.display_name())
        ));
        if plug.facts.has_meter {
            self.put(format_args!("<p class=\"now\">{}</p>\n{spark}\n", power_now(own)));
            let energy: u64 = own.iter().filter_map(|one| one.bucket).map(|bucket| bucket.energy.get()).sum();
            let cost = own.iter().filter_map(|one| one.cost).reduce(|a, b| a + b);
            let (energy, cost) = (self.energy(energy), self.money(cost));
            let cost = if cost.is_empty() { cost } else { format!(" &middot; {cost}") };
            self.put(format_args!("<p class=\"used\">Today {energy}{cost}</p>\n"));
        } else {
            self.put(format_args!("<p class=\"used\">Has no meter.</p>\n"));
        }
        self.state(app, plug, now);
        self.put(format_args!("</li>\n"));
    }

    /// Online or since when not, and why; the signal.
    fn state(&mut self, app: &App, plug: &Plug, now: UnixMillis) {
        let signal = plug.signal.map(|signal| {
            let word = match signal.0 {
                -60..=0 => "good",
                -70..=-61 => "fair",
                _ => "weak",
            };
            format!(" &middot; signal {word} ({} dBm)", signal.0)
        });
        let state = match plug.presence {
            Presence::Online => format!("<span class=\"dot\"></span>online{}", signal.unwrap_or_default()),
            Presence::Unknown => "<span class=\"dot\"></span>not asked yet".to_owned(),
            Presence::Offline { since } => {
                let since = plug.last_seen.unwrap_or(since);
                format!("<span class=\"dot\"></span>offline since {}", time(app, since, now))
            }
        };
        self.put(format_args!("<p class=\"state\">{state}</p>\n"));
        if let Some(trouble) = plug.last_error.as_ref().filter(|_| plug.presence != Presence::Online) {
            self.put(format_args!("<p class=\"why\">{}</p>\n", Escaped(&trouble.text)));
        }
    }

    /// Addresses in the configuration behind which nothing answers as a plug should.
    pub fn unmet(&mut self, app: &App) {
        let fleet = app.fleet.borrow();
        for (n, unmet) in fleet.unmet().enumerate() {
            if n == 0 {
                self.put(format_args!("<h2>Not met yet</h2>\n<ul class=\"unmet\">\n"));
            }
            let name = unmet.name.as_ref().map(|name| format!("<bdi>{}</bdi> at ", Escaped(name.as_str())));
            let why = unmet.last_error.as_ref().map_or("nothing has answered there yet", |trouble| &trouble.text);
            self.put(format_args!(
                "<li>{}{}: {}</li>\n",
                name.unwrap_or_default(),
                Escaped(unmet.address.ip()),
                Escaped(why)
            ));
        }
        if fleet.unmet().next().is_some() {
            self.put(format_args!("</ul>\n"));
        }
    }

    /// What was probed, and what to try.
    pub fn no_plugs(&mut self, app: &App) {
        self.put(format_args!("<section class=\"empty\"><h2>No plug has been found yet</h2>\n"));
        let discovery = &app.discovery;
        if discovery.enabled {
            let targets: Vec<String> = discovery.targets.iter().map(ToString::to_string).collect();
            self.put(format_args!(
                "<p>Probes go to {} every {}, on the ports that Kasa and Tapo plugs listen on. This page shows a plug as soon \
                 as it answers.</p>\n",
                Escaped(targets.join(", ")),
                crate::config::duration_text(discovery.every)
            ));
        } else {
            self.put(format_args!(
                "<p>Nothing is looked for: <code>discovery.enabled</code> is false. Set it to true, or list your plugs.</p>\n"
            ));
        }
        self.put(format_args!(
            "<ul>\n<li>See who answers: <code>wattd discover</code></li>\n\
             <li>Is this machine in the same network as the plugs? Broadcasts do not cross routers, and guest networks often keep \
             devices apart. Name the plugs' network under <code>discovery.targets</code>, such as \
             <code>192.168.20.255</code>.</li>\n\
             <li>Or list a plug by its address, which the vendor's app shows under <em>Device Info</em>:\
             <pre>[[plugs]]\naddress = \"192.168.1.20\"</pre></li>\n\
             <li>Tapo plugs and newer Kasa firmware want the account of the vendor's app: set <code>account.username</code> and \
             <code>account.password_file</code>, or turn on <em>Third-Party Compatibility</em> in the app.</li>\n</ul></section>\n"
        ));
        self.unmet(app);
    }

    /// Who it is, what it uses and used.
    pub fn plug_head(&mut self, app: &App, id: DeviceId, title: &str, used: &[(&str, Vec<Summary>)]) {
        let now = app.clock.wall();
        let own: Vec<&Summary> = used.first().map(|(_, today)| today.iter().collect()).unwrap_or_default();
        let fleet = app.fleet.borrow();
        let plug = fleet.get(id.plug);
        let class = plug.map_or("", class_of);
        self.put(format_args!(
            "<h1><bdi>{}</bdi></h1>\n<div class=\"card head{class}\" data-plug=\"{}\">\n",
            Escaped(title),
            DeviceId::plug(id.plug)
        ));
        if !own.is_empty() {
            self.put(format_args!("<p class=\"now\">{}</p>\n", power_now(&own)));
        }
        if let Some(plug) = plug {
            self.state(app, plug, now);
        }
        self.put(format_args!("</div>\n"));
        if own.is_empty() {
            self.put(format_args!(
                "<p class=\"note\">Nothing of it is measured: it has no meter, or was never read.</p>\n"
            ));
        }
        self.put(format_args!("<section class=\"totals\" aria-label=\"Used\">\n"));
        for (label, summaries) in used {
            let (energy, cost) = together(summaries);
            let (energy, cost) = (self.energy(energy), self.money(cost));
            let cost = if cost.is_empty() { cost } else { format!("<small>{cost}</small>") };
            self.put(format_args!("<div><span class=\"label\">{label}</span><strong>{energy}</strong>{cost}</div>\n"));
        }
        self.put(format_args!("</section>\n"));
    }

    /// The power below which it hardly ever goes.
    pub fn standby(&mut self, levels: &[Level]) {
        let mut least: Vec<u64> =
            levels.iter().map(|level| level.band.map_or(level.mean, |(least, _)| least).0).collect();
        least.sort_unstable();
        if least.len() < 8 {
            return;
        }
        let Some(standby) = least.get(least.len() / 20) else { return };
        // mW for a year of 8,766 hours, in mWh.
        let year = self.energy(standby.saturating_mul(8_766));
        self.put(format_args!(
            "<p class=\"standby\">Standby: <span data-mw=\"{standby}\">{}</span>, {year} a year. It uses more than that 95 % \
             of the time shown.</p>\n",
            watts(Thousandths(*standby))
        ));
    }

    /// A strip's outlets, each with what it uses now and used today.
    pub fn outlets(&mut self, today: &[Summary]) {
        self.put(format_args!("<h2>Outlets</h2>\n<ul class=\"cards\">\n"));
        for one in today {
            let id = one.who.id;
            let energy = self.energy(one.bucket.map_or(0, |bucket| bucket.energy.get()));
            let cost = self.money(one.cost);
            let cost = if cost.is_empty() { cost } else { format!(" &middot; {cost}") };
            let name = if one.who.alias.is_empty() { id.to_string() } else { one.who.alias.clone() };
            self.put(format_args!(
                "<li class=\"card\"><h3><a href=\"/plug/{id}\" data-nav><bdi>{}</bdi></a></h3>\n<p class=\"now\">{}</p>\n\
                 <p class=\"used\">Today {energy}{cost}</p></li>\n",
                Escaped(&name),
                power_now(&[one])
            ));
        }
        self.put(format_args!("</ul>\n"));
    }

    /// What is known of the plug besides.
    pub fn facts(&mut self, app: &App, id: DeviceId) {
        let fleet = app.fleet.borrow();
        let Some(plug) = fleet.get(id.plug) else { return };
        self.put(format_args!(
            "<h2>The plug</h2>\n<dl>\n<dt>Model</dt><dd>{}</dd>\n<dt>Firmware</dt><dd>{}</dd>\n<dt>Address</dt><dd>{}</dd>\n\
             <dt>Protocol</dt><dd>{}</dd>\n<dt>Id</dt><dd>{id}</dd>\n</dl>\n",
            Escaped(&plug.facts.model),
            Escaped(&plug.facts.firmware),
            Escaped(plug.address.ip()),
            Escaped(plug.facts.protocol.name())
        ));
    }
}

/// How a plug's card looks beside others'.
const fn class_of(plug: &Plug) -> &'static str {
    match plug.presence {
        Presence::Online => "",
        Presence::Offline { .. } => " off",
        Presence::Unknown => " unknown",
    }
}

/// The live power of devices together, each with its own for the script; a dash for what is not live.
fn power_now(own: &[&Summary]) -> String {
    let live = |one: &&&Summary| one.who.latest.as_ref().is_some_and(|latest| latest.online);
    let power = |one: &Summary| one.who.latest.as_ref().map_or(0, |latest| u64::from(latest.reading.power.get()));
    let sum: u64 = own.iter().filter(live).map(|one| power(one)).sum();
    let parts: Vec<String> = own
        .iter()
        .map(|one| format!("{}={}", one.who.id, if live(&one) { power(one).to_string() } else { String::new() }))
        .collect();
    let shown = if own.iter().any(|one| live(&one)) { watts(Thousandths(sum)) } else { "\u{2013}".to_owned() };
    format!("<span class=\"watts\" data-of=\"{}\">{shown}</span>", parts.join(" "))
}
