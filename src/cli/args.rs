//! From the command line's words to an [`Invocation`].
//!
//! Owns the verbs and their flags. The flags of settings are not written here: they follow from [`KEYS`], one global
//! long flag for each key, checked as they are read. Wrong usage is clap's to tell, with exit code 2.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::config::{KEYS, Key};

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// What to do.
    pub verb: Verb,
    /// The file named by `--config`.
    pub config: Option<PathBuf>,
    /// The settings given as flags, in the order of [`KEYS`], each acceptable to its key. `-v` is `--log-level debug`.
    pub flags: Vec<(&'static Key, String)>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The agent.
    Run(Rounds),
    /// Look for plugs and list them.
    Discover {
        /// How to print.
        format: Format,
        /// Whether to ask.
        probing: Probing,
    },
    /// One reading of one plug.
    Read {
        /// The plug: an address, a host name, an id or an alias. As typed.
        host: String,
        /// How to print.
        format: Format,
        /// Whom to ask.
        route: Route,
    },
    /// Write out what is stored.
    Export(Export),
    /// Look at a closed store and say what is wrong with it.
    Check(Format),
    /// Copy everything that is stored into a file.
    Backup {
        /// The file.
        file: PathBuf,
    },
    /// Make a store of such a file.
    Restore {
        /// The file.
        file: PathBuf,
        /// What becomes of a store that is there.
        existing: Existing,
    },
    /// Look at everything and say what to do.
    Doctor(Format),
    /// Print the effective settings.
    ConfigShow(Format),
    /// Say what is wrong with the settings.
    ConfigCheck,
}

/// How long the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounds {
    /// Until it is told to stop.
    Forever,
    /// One round of polls.
    Once,
}

/// How output is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What discovery does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// Sends its probes.
    Send,
    /// Says what it would send where.
    DryRun,
}

/// What `restore` does with a store that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leaves it and refuses.
    Keep,
    /// Puts the restored one in its place.
    Replace,
}

/// Who is asked for a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The running agent, else the plug.
    AgentFirst,
    /// The plug itself, which may end the agent's session with it.
    Direct,
}

/// What is to be written out. All as typed; what is not one of a few words is checked by whoever answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Ids or aliases; all devices when none.
    pub devices: Vec<String>,
    /// The start; everything that is kept when none.
    pub from: Option<String>,
    /// The end, not included; now when none.
    pub to: Option<String>,
    /// `readings`, or the length of a bucket.
    pub what: String,
    /// `csv` or `ndjson`.
    pub format: String,
    /// Columns with commas; the usual ones when none.
    pub fields: Option<String>,
    /// `rfc3339` or `ms`.
    pub time: Option<String>,
}

/// The flag of one setting.
struct Flag {
    key: &'static Key,
    /// Also clap's id of it: no verb's own flag has a name that is also a key's.
    long: String,
}

// clap wants names that live as long as the program, and these are made from the keys.
static FLAGS: LazyLock<Vec<Flag>> = LazyLock::new(|| KEYS.iter().map(|key| Flag { key, long: key.flag() }).collect());

/// Reads the command line; the first of `args` is the program's name.
///
/// # Errors
/// clap's error, which also stands for `--help` and `--version`: print it with its own `print`, and exit with its own
/// `exit_code` (0 for those two, 2 for wrong usage).
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    let (name, own) = matches.subcommand().ok_or_else(no_verb)?;
    let verb = match name {
        "run" => Verb::Run(if own.get_flag("once") { Rounds::Once } else { Rounds::Forever }),
        "discover" => Verb::Discover {
            format: format(own),
            probing: if own.get_flag("dry-run") { Probing::DryRun } else { Probing::Send },
        },
        "read" => Verb::Read {
            host: own.get_one::<String>("host").cloned().ok_or_else(no_verb)?,
            format: format(own),
            route: if own.get_flag("direct") { Route::Direct } else { Route::AgentFirst },
        },
        "export" => Verb::Export(export(own)),
        "check" => Verb::Check(format(own)),
        "doctor" => Verb::Doctor(format(own)),
        "backup" => Verb::Backup { file: own.get_one::<PathBuf>("file").cloned().ok_or_else(no_verb)? },
        "restore" => Verb::Restore {
            file: own.get_one::<PathBuf>("file").cloned().ok_or_else(no_verb)?,
            existing: if own.get_flag("force") { Existing::Replace } else { Existing::Keep },
        },
        "config" => match own.subcommand() {
            Some(("show", own)) => Verb::ConfigShow(format(own)),
            Some(("check", _)) => Verb::ConfigCheck,
            _ => return Err(no_verb()),
        },
        _ => return Err(no_verb()),
    };
    Ok(Invocation { verb, config: matches.get_one("config-file").cloned(), flags: flags(&matches) })
}

/// Not to be seen while clap holds verbs and `host` to be required; still an error and no panic.
fn no_verb() -> clap::Error {
    command().error(clap::error::ErrorKind::MissingSubcommand, "a verb is missing")
}

fn format(matches: &ArgMatches) -> Format {
    if matches.get_flag("json") { Format::Json } else { Format::Table }
}

fn export(matches: &ArgMatches) -> Export {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    Export {
        devices: matches.get_many("device").into_iter().flatten().cloned().collect(),
        from: text("from"),
        to: text("to"),
        what: text("what").unwrap_or_default(),
        format: text("format").unwrap_or_default(),
        fields: text("fields"),
        time: text("time"),
    }
}

fn flags(matches: &ArgMatches) -> Vec<(&'static Key, String)> {
    let given = |flag: &Flag| matches.get_one::<String>(&flag.long).cloned();
    let is_verbose = matches.get_flag("verbose");
    let value = |flag: &'static Flag| {
        let loud = (is_verbose && flag.long == "log-level").then(|| "debug".to_owned());
        given(flag).or(loud).map(|text| (flag.key, text))
    };
    FLAGS.iter().filter_map(value).collect()
}

/// The whole command line, for help texts, completions and the manual page too.
#[must_use]
pub fn command() -> Command {
    let json = || switch("json", "Print JSON");
    Command::new("wattd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Records what TP-Link Kasa and Tapo plugs measure")
        .after_help("Every setting has a flag as well: see --help.")
        .after_long_help(
            "Settings come from a file (--config, else $WATTD_CONFIG, else /etc/wattd/wattd.toml), from the \
             environment (poll.interval is WATTD_POLL_INTERVAL) and from flags; the latter beats the former.\n\
             Exit code: 0 done, 1 failed, 2 wrong usage.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .arg(
            Arg::new("config-file")
                .long("config")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .global(true)
                .help("Read the settings from FILE"),
        )
        .arg(
            Arg::new("verbose")
                .short('v')
                .action(ArgAction::SetTrue)
                .global(true)
                .help("Log more: the same as --log-level debug"),
        )
        .args(FLAGS.iter().map(setting))
        .subcommand(
            Command::new("run")
                .about("Runs the agent: finds plugs, polls them, keeps the readings, serves them")
                .arg(switch("once", "Poll each plug once, print, and end")),
        )
        .subcommand(
            Command::new("discover")
                .about("Lists the plugs that answer on this network")
                .arg(json())
                .arg(switch("dry-run", "Say what would be sent where, and send nothing")),
        )
        .subcommand(
            Command::new("read")
                .about("Prints one reading of one plug, now")
                .arg(Arg::new("host").value_name("HOST").required(true).help("The plug's address, id or name"))
                .arg(json())
                .arg(switch("direct", "Ask the plug itself, even if an agent runs; this may end the agent's session")),
        )
        .subcommand(
            Command::new("export")
                .about("Writes readings or rollups as CSV or NDJSON, from the running agent or a closed store")
                .after_help(
                    "A TIME is RFC 3339, a date in the configured zone, Unix seconds or milliseconds, or relative: \
                     -24h, -7d, now.",
                )
                .arg(value("device", "DEVICE", "An id or a name; may be repeated").action(ArgAction::Append))
                .arg(value("from", "TIME", "The start [default: everything that is kept]").allow_hyphen_values(true))
                .arg(value("to", "TIME", "The end, not included [default: now]").allow_hyphen_values(true))
                .arg(
                    value("what", "WHAT", "Readings, or buckets of this length")
                        .value_parser(["readings", "15m", "1h", "1d", "1mo"])
                        .default_value("readings"),
                )
                .arg(
                    value("format", "FORMAT", "How rows are written")
                        .value_parser(["csv", "ndjson"])
                        .default_value("csv"),
                )
                .arg(value("fields", "FIELDS", "The columns, with commas between them"))
                .arg(value("time", "FORM", "How times are written").value_parser(["rfc3339", "ms"])),
        )
        .subcommand(
            Command::new("check")
                .about("Looks at every page and every reading of a store that no agent has open")
                .arg(json()),
        )
        .subcommand(
            Command::new("backup")
                .about("Copies everything that is stored into FILE, also while the agent runs")
                .arg(file("Where to; replaced once the copy is whole")),
        )
        .subcommand(
            Command::new("restore")
                .about("Makes a store of a FILE that `backup` has written; no agent may run")
                .arg(file("Where from"))
                .arg(switch("force", "Replace the store that is there")),
        )
        .subcommand(
            Command::new("doctor")
                .about("Looks at settings, clock, network, plugs, disk and unit, and says what to do")
                .arg(json()),
        )
        .subcommand(
            Command::new("config")
                .about("Shows or checks the settings")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .disable_help_subcommand(true)
                .subcommand(Command::new("show").about("Prints each setting and where it comes from").arg(json()))
                .subcommand(Command::new("check").about("Says everything that is wrong with the settings")),
        )
}

fn file(help: &'static str) -> Arg {
    Arg::new("file").value_name("FILE").required(true).value_parser(value_parser!(PathBuf)).help(help)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn value(name: &'static str, placeholder: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(placeholder).help(help)
}

/// The flag of a setting.
fn setting(flag: &'static Flag) -> Arg {
    let key = flag.key;
    let check = move |text: &str| {
        key.check(text).map(|()| text.to_owned()).map_err(|error| format!("{error}; allowed is {}", key.kind.allowed()))
    };
    let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
    let planned = if key.planned { " [no effect in this version]" } else { "" };
    Arg::new(flag.long.as_str())
        .long(flag.long.as_str())
        .value_name(key.kind.placeholder())
        .value_parser(check)
        .global(true)
        .hide_short_help(true)
        .help_heading("Settings")
        .help(format!("{}{default}{planned}", key.doc))
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parsed(line: &str) -> Result<Invocation, clap::Error> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn verb(line: &str) -> Verb {
        parsed(line).unwrap().verb
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn verbs_and_their_flags_are_read() {
        assert_eq!(verb("wattd run"), Verb::Run(Rounds::Forever));
        assert_eq!(verb("wattd run --once"), Verb::Run(Rounds::Once));
        let discover = |format, probing| Verb::Discover { format, probing };
        assert_eq!(verb("wattd discover"), discover(Format::Table, Probing::Send));
        assert_eq!(verb("wattd discover --json --dry-run"), discover(Format::Json, Probing::DryRun));
        let read = |format, route| Verb::Read { host: "10.0.0.1".to_owned(), format, route };
        assert_eq!(verb("wattd read 10.0.0.1"), read(Format::Table, Route::AgentFirst));
        assert_eq!(verb("wattd read --direct 10.0.0.1 --json"), read(Format::Json, Route::Direct));
        let export = Export {
            devices: vec!["fridge".to_owned(), "9c5322aabbcc".to_owned()],
            from: Some("-7d".to_owned()),
            to: None,
            what: "1d".to_owned(),
            format: "csv".to_owned(),
            fields: Some("start,energy_wh".to_owned()),
            time: None,
        };
        let line = "wattd export --device fridge --device 9c5322aabbcc --from -7d --what 1d --fields start,energy_wh";
        assert_eq!(verb(line), Verb::Export(export));
        assert_eq!(verb("wattd config show --json"), Verb::ConfigShow(Format::Json));
        assert_eq!(verb("wattd config check"), Verb::ConfigCheck);
        assert_eq!(verb("wattd check --json"), Verb::Check(Format::Json));
        assert_eq!(verb("wattd backup a"), Verb::Backup { file: PathBuf::from("a") });
        let restore = |existing| Verb::Restore { file: PathBuf::from("a"), existing };
        assert_eq!(verb("wattd restore a"), restore(Existing::Keep));
        assert_eq!(verb("wattd restore --force a"), restore(Existing::Replace));
    }

    #[test]
    fn settings_are_read_before_and_after_the_verb() {
        for line in [
            "wattd --config f --poll-interval 7s --http-public-read true -v config show",
            "wattd config show --poll-interval 7s -v --http-public-read=true --config f",
            "wattd --poll-interval 7s config --config f -v show --http-public-read true",
        ] {
            let invocation = parsed(line).unwrap();
            assert_eq!(invocation.config, Some(PathBuf::from("f")));
            let flags: Vec<_> = invocation.flags.iter().map(|(key, text)| (key.path(), text.as_str())).collect();
            let expected = [("poll.interval", "7s"), ("http.public_read", "true"), ("log.level", "debug")];
            assert_eq!(flags, expected.map(|(key, text)| (key.to_owned(), text)));
        }
        let both = parsed("wattd -v run --log-level trace").unwrap();
        assert_eq!(both.flags.first().map(|(_, text)| text.as_str()), Some("trace"));
        assert_eq!(parsed("wattd run").unwrap().flags, []);
    }

    #[test]
    fn every_key_has_a_flag() {
        for flag in FLAGS.iter().filter(|flag| !flag.key.default.is_empty()) {
            let line = format!("wattd run --{} {}", flag.long, flag.key.default);
            assert_eq!(parsed(&line).unwrap().flags, [(flag.key, flag.key.default.to_owned())]);
        }
    }

    #[test]
    fn wrong_usage_ends_in_exit_code_2_and_says_why() {
        for (line, kind) in [
            ("wattd", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("wattd config", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("wattd -v", ErrorKind::MissingSubcommand),
            ("wattd brew", ErrorKind::InvalidSubcommand),
            ("wattd read", ErrorKind::MissingRequiredArgument),
            ("wattd export --what 1m", ErrorKind::InvalidValue),
            ("wattd run --poll-intervall 5s", ErrorKind::UnknownArgument),
            ("wattd run --poll-interval 5x", ErrorKind::ValueValidation),
        ] {
            let error = parsed(line).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}");
        }
        let text = parsed("wattd run --poll-interval 5").unwrap_err().to_string();
        assert!(text.contains("write `5s` for seconds; allowed is 100ms to 1h"), "{text}");
        for line in ["wattd --help", "wattd -V", "wattd --version", "wattd run -h"] {
            assert_eq!(parsed(line).unwrap_err().exit_code(), 0, "{line}");
        }
    }

    #[test]
    fn settings_stand_in_the_long_help_alone() {
        let (short, long) =
            (parsed("wattd -h").unwrap_err().to_string(), parsed("wattd --help").unwrap_err().to_string());
        assert!(!short.contains("--poll-interval") && short.contains("--config <FILE>"), "{short}");
        assert!(FLAGS.iter().all(|flag| long.contains(&format!("--{} <", flag.long))), "{long}");
        assert!(long.contains("Settings:"), "{long}");
        assert_eq!(parsed("wattd").unwrap_err().to_string(), short);
    }
}
