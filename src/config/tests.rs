//! Loading as a whole: what the sources say against what comes out.

use std::os::unix::ffi::OsStringExt as _;

use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = include_str!("../../systemd/wattd.toml");

fn machine() -> Machine {
    Machine { is_root: true, zone: Some("Europe/Berlin".to_owned()), ..Machine::default() }
}

fn from_file(text: &str) -> Sources {
    Sources { file: Some(("wattd.toml".into(), text.to_owned())), machine: machine(), ..Sources::default() }
}

fn from_env(env: &[(&str, &str)]) -> Sources {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Sources { env, machine: machine(), ..Sources::default() }
}

/// The problems of a file, as lines.
fn told(text: &str) -> Vec<String> {
    told_by(&from_file(text))
}

fn told_by(sources: &Sources) -> Vec<String> {
    load(sources).err().map(|p| p.problems.iter().map(Problem::to_string).collect()).unwrap_or_default()
}

fn accepted(sources: &Sources) -> Loaded {
    load(sources).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn nothing_set_gives_every_default_without_a_warning() {
    let loaded = accepted(&from_env(&[]));
    let expected = Config { timezone: TimeZone::get("Europe/Berlin").unwrap(), ..Config::default() };
    assert_eq!(loaded.config, expected);
    assert_eq!(loaded.warnings, []);
    assert!(loaded.settings.iter().all(|setting| setting.origin == Origin::Default));
    assert_eq!(loaded.config.poll.interval, Duration::from_secs(10));
    assert_eq!(loaded.config.discovery.targets, [Ipv4Addr::BROADCAST]);
    assert_eq!(loaded.config.retention.max_size.get(), 2 << 30);
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let mut sources = from_file("listen = \"127.0.0.1:1\"\n[poll]\ninterval = \"11s\"\nstrip_interval = \"70s\"\n");
    sources.env = vec![
        ("WATTD_LISTEN".to_owned(), "127.0.0.1:2".to_owned()),
        ("WATTD_POLL_INTERVAL".to_owned(), "12s".to_owned()),
        ("WATTD_POLL_TIMEOUT".to_owned(), String::new()),
    ];
    sources.flags = vec![(keys::find("", "listen").unwrap(), "127.0.0.1:3".to_owned())];
    let loaded = accepted(&sources);
    assert_eq!(loaded.config.listen.port(), 3);
    assert_eq!(loaded.config.poll.interval, Duration::from_secs(12));
    assert_eq!(loaded.config.poll.strip_interval, Duration::from_secs(70));
    let origin = |key: &str| loaded.settings.iter().find(|s| s.key == key).unwrap().origin.to_string();
    assert_eq!(origin("listen"), "--listen");
    assert_eq!(origin("poll.interval"), "WATTD_POLL_INTERVAL");
    assert_eq!(origin("poll.strip_interval"), "wattd.toml:4");
    assert_eq!(origin("poll.timeout"), "default");
}

#[test]
fn each_way_of_writing_reaches_its_field() {
    let loaded = accepted(&from_file(
        "timezone = \"Africa/Cairo\"\npoll.in_flight = 0x20\n[discovery]\ntargets = [\"10.0.0.1\",\n \"10.0.0.2\"]\n\
         [retention]\nmax_size = 67108864\nraw = \"forever\"\n[http]\npublic_read = true\nhosts = [\"Pi.local\"]\n\
         token_file = \"/etc/token\"\n[[plugs]]\naddress = \"::ffff:10.0.0.9\"\nname = \"fridge\"\n\
         [[plugs]]\naddress = \"fe80::1\"\n",
    ));
    let config = loaded.config;
    assert_eq!(config.timezone.iana_name(), Some("Africa/Cairo"));
    assert_eq!(config.poll.in_flight, 32);
    assert_eq!(config.discovery.targets, [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]);
    assert_eq!((config.retention.max_size.get(), config.retention.raw), (64 << 20, Keep::Forever));
    assert_eq!((config.http.hosts, config.http.public_read), (vec!["pi.local".to_owned()], true));
    assert_eq!(config.http.token_file.as_deref(), Some(Path::new("/etc/token")));
    let names: Vec<_> =
        config.plugs.iter().map(|p| (p.address.to_string(), p.name.as_ref().map(Alias::as_str))).collect();
    assert_eq!(names, [("10.0.0.9".to_owned(), Some("fridge")), ("fe80::1".to_owned(), None)]);
    assert_eq!(loaded.settings.last().map(|s| s.key.as_str()), Some("plugs[1].address"));

    let lists = from_env(&[("WATTD_DISCOVERY_TARGETS", "10.0.0.1, 10.0.0.2"), ("WATTD_HTTP_HOSTS", "a,b")]);
    let config = accepted(&lists).config;
    assert_eq!((config.discovery.targets.len(), config.http.hosts.len()), (2, 2));
}

#[test]
fn problems_name_line_key_cause_cure_and_the_nearest_key() {
    for (text, message) in [
        ("\n\n[poll]\nintervall = \"5s\"", "wattd.toml:4: unknown key `poll.intervall`; did you mean `poll.interval`?"),
        (
            "listen = \"x\"",
            "wattd.toml:1: `listen`: `x` cannot be understood; allowed is IP address and port, such as 127.0.0.1:8650 \
             or [::]:8650",
        ),
        ("interval = \"5s\"", "wattd.toml:1: unknown key `interval`; did you mean `poll.interval`?"),
        ("[pol]\na = 1", "wattd.toml:1: unknown table `pol`; did you mean `poll`?"),
        ("[mqtt]", "wattd.toml:1: unknown table `mqtt`"),
        ("[[plug]]", "wattd.toml:1: unknown table `plug`; did you mean `plugs`?"),
        (
            "poll.interval = \"5x\"",
            "wattd.toml:1: `poll.interval`: `5x` is not a whole number with one of the units y, d, h, m, s, ms; \
             allowed is 100ms to 1h",
        ),
        (
            "poll.interval = 10",
            "wattd.toml:1: `poll.interval`: `10` has no unit; write `10s` for seconds; allowed is 100ms to 1h",
        ),
        ("poll.interval = \"2h\"", "wattd.toml:1: `poll.interval`: `2h` is out of bounds; allowed is 100ms to 1h"),
        ("poll.in_flight = 257", "wattd.toml:1: `poll.in_flight`: `257` is out of bounds; allowed is 1 to 256"),
        ("poll.in_flight = -1", "wattd.toml:1: `poll.in_flight`: `-1` is out of bounds; allowed is 1 to 256"),
        ("poll.in_flight = \"9\"", "wattd.toml:1: `poll.in_flight`: a string is of no use here; allowed is 1 to 256"),
        ("poll.adaptive = 1", "wattd.toml:1: `poll.adaptive`: an integer is of no use here; allowed is true or false"),
        ("data_dir = 5", "wattd.toml:1: `data_dir`: an integer is of no use here; allowed is a path"),
        ("poll = 5", "wattd.toml:1: `poll`: an integer is of no use here; allowed is a table"),
        ("[plugs]", "wattd.toml:1: `plugs`: a table is of no use here; allowed is one [[plugs]] for each"),
        (
            "[[plugs]]\nname = \"a\"",
            "wattd.toml:1: `plugs`: this entry has no `address`; add one such as \"192.168.1.20\"",
        ),
        (
            "plugs = [{address = \"kettle\"}]",
            "wattd.toml:1: `plugs.address`: `kettle` cannot be understood; allowed is an IP address",
        ),
        (
            "[[plugs]]\naddress = \"10.0.0.1\"\n[[plugs]]\naddress = \"10.0.0.1\"",
            "wattd.toml:4: `plugs.address`: 10.0.0.1 stands on line 2 already; remove one of the two",
        ),
        (
            "[poll]\nmin_interval = \"20s\"",
            "wattd.toml:2: `poll.interval` is 10s, below `poll.min_interval` of 20s; raise `poll.interval` to at least \
             20s, or lower `poll.min_interval` to 10s",
        ),
        (
            "listen = \"0.0.0.0:8650\"",
            "wattd.toml:1: `listen`: 0.0.0.0:8650 can be reached from other machines, and nothing says who may read; \
             add to [http] either the line `token_file = \"/etc/wattd/token\"` or the line `public_read = true`",
        ),
        (
            "timezone = \"Europe/Berln\"",
            "wattd.toml:1: `timezone`: `Europe/Berln` is no time zone known to this machine (the nearest is \
             `Europe/Berlin`); allowed is an IANA name such as Europe/Berlin, or system",
        ),
    ] {
        assert_eq!(told(text), [message], "{text}");
    }
}

#[test]
fn all_problems_of_all_sources_are_told_in_order() {
    let mut sources = from_file(
        "[poll]\ninterval = \"ten\"\ntimeout = \"1h\"\n[htpp]\n[[plugs]]\nadress = \"10.0.0.1\"\n[discovery]\n\
         every = 5m\nenabled = \"yes\"\n",
    );
    sources.env = vec![("WATTD_POLL_INTERVAL".to_owned(), "1".to_owned())];
    sources.flags = vec![(keys::find("", "listen").unwrap(), "localhost".to_owned())];
    let places: Vec<String> =
        load(&sources).unwrap_err().problems.iter().map(|problem| problem.origin.to_string()).collect();
    assert_eq!(
        places,
        [
            "wattd.toml:2",
            "wattd.toml:3",
            "wattd.toml:4",
            "wattd.toml:5",
            "wattd.toml:6",
            "wattd.toml:8",
            "wattd.toml:9",
            "WATTD_POLL_INTERVAL",
            "--listen"
        ],
        "{:?}",
        told_by(&sources)
    );
}

#[test]
fn syntax_errors_have_a_line_and_never_repeat_it() {
    for text in ["listen = hunter2", "a = \"b\"\nlisten = \"hunter2", "[poll]\n[poll]\nhunter2", "= hunter2"] {
        let told = told(text);
        assert!(told.iter().any(|line| line.contains("not TOML")), "{told:?}");
        assert!(told.iter().all(|line| line.starts_with("wattd.toml:") && !line.contains("hunter2")), "{told:?}");
    }
}

#[test]
fn secrets_in_the_wrong_place_are_not_repeated() {
    for text in [
        "account.password = \"hunter2\"",
        "account.password_file = \"hunter2\"",
        "http.token_file = \"hunter2\"",
        "forward.url = \"http://me:hunter2@host/\"",
        "http.token = [\"hunter2\"]",
    ] {
        let told = told(text);
        assert!(!told.is_empty() && told.iter().all(|line| !line.contains("hunter2")), "{told:?}");
    }
    let loaded = accepted(&from_env(&[("WATTD_ACCOUNT_PASSWORD", "hunter2"), ("UNRELATED", "hunter2")]));
    assert_eq!(
        loaded.warnings.iter().map(Warning::to_string).collect::<Vec<_>>(),
        ["WATTD_ACCOUNT_PASSWORD: unknown variable, ignored; did you mean WATTD_ACCOUNT_PASSWORD_FILE?"]
    );
    assert!(!format!("{loaded:?}").contains("hunter2"));
}

#[test]
fn unknown_variables_and_idle_settings_warn() {
    let told = |env: &[(&str, &str)]| -> Vec<String> {
        accepted(&from_env(env)).warnings.iter().map(Warning::to_string).collect()
    };
    assert_eq!(
        told(&[("WATTD_POLL_INTERVALL", "5s")]),
        ["WATTD_POLL_INTERVALL: unknown variable, ignored; did you mean WATTD_POLL_INTERVAL?"]
    );
    assert_eq!(told(&[("WATTD_CONFIG", "x"), ("WATTD_ZZZ", "")]), ["WATTD_ZZZ: unknown variable, ignored"]);
    assert_eq!(
        told(&[
            ("WATTD_FORWARD_URL", "http://10.0.0.1/w"),
            ("WATTD_RETENTION_RAW", "9600h"),
            ("WATTD_RETENTION_DAY", "9y")
        ]),
        [
            "WATTD_RETENTION_DAY: `retention.day` has no effect in this version",
            "WATTD_FORWARD_URL: `forward.url` has no effect in this version"
        ]
    );
    assert_eq!(told(&[("WATTD_DISCOVERY_ENABLED", "false")]).len(), 1);
    let unnamed = accepted(&Sources::default());
    assert_eq!(unnamed.warnings, [Warning::UnnamedZone]);
    assert_eq!(unnamed.config.timezone.iana_name(), Some("UTC"));
}

#[test]
fn listening_beyond_this_machine_needs_a_word_about_who_may_read() {
    for (env, is_fine) in [
        (vec![("WATTD_LISTEN", "[::]:8650")], false),
        (vec![("WATTD_LISTEN", "192.168.1.2:80")], false),
        (vec![("WATTD_LISTEN", "127.7.7.7:80")], true),
        (vec![("WATTD_LISTEN", "[::1]:0")], true),
        (vec![("WATTD_LISTEN", "[::ffff:127.0.0.1]:80")], true),
        (vec![("WATTD_LISTEN", "[::ffff:10.0.0.1]:80")], false),
        (vec![("WATTD_LISTEN", "0.0.0.0:80"), ("WATTD_HTTP_PUBLIC_READ", "true")], true),
        (vec![("WATTD_LISTEN", "0.0.0.0:80"), ("WATTD_HTTP_TOKEN_FILE", "/etc/token")], true),
    ] {
        assert_eq!(load(&from_env(&env)).is_ok(), is_fine, "{env:?}");
    }
}

#[test]
fn data_has_its_place_on_each_kind_of_machine() {
    let place = |is_root, env: &[(&str, &str)]| {
        let mut sources = from_env(env);
        sources.machine.is_root = is_root;
        accepted(&sources).config.data_dir
    };
    let (state, xdg, home) = (("STATE_DIRECTORY", "/s/a:/s/b"), ("XDG_DATA_HOME", "/x"), ("HOME", "/home/me"));
    assert_eq!(place(false, &[state, xdg, home]), Path::new("/s/a"));
    assert_eq!(place(true, &[xdg, home]), Path::new("/var/lib/wattd"));
    assert_eq!(place(false, &[xdg, home]), Path::new("/x/wattd"));
    assert_eq!(place(false, &[("XDG_DATA_HOME", "relative"), home]), Path::new("/home/me/.local/share/wattd"));
    assert_eq!(place(false, &[]), Path::new("/var/lib/wattd"));
    assert_eq!(place(false, &[state, ("WATTD_DATA_DIR", "./here")]), Path::new("./here"));
}

#[test]
fn files_are_found_in_order_and_read_with_a_cap() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let env = |name: &str| vec![(FILE_VARIABLE.to_owned(), path(name).to_str().unwrap().to_owned())];
    for name in ["flag", "env", "usual"] {
        std::fs::write(path(name), name).unwrap();
    }
    let found = |flag: Option<&str>, env: &[(String, String)], usual: &str| {
        find_file(flag.map(path).as_deref(), env, &path(usual)).map(|file| file.map(|(_, text)| text))
    };
    assert_eq!(found(Some("flag"), &env("env"), "usual").unwrap().as_deref(), Some("flag"));
    assert_eq!(found(None, &env("env"), "usual").unwrap().as_deref(), Some("env"));
    assert_eq!(found(None, &[], "usual").unwrap().as_deref(), Some("usual"));
    assert_eq!(found(None, &[], "none").unwrap(), None);
    for missing in [found(Some("none"), &[], "usual"), found(None, &env("none"), "usual")] {
        assert!(missing.unwrap_err().to_string().contains("none: cannot be read: "));
    }
    assert!(find_file(None, &[], dir.path()).is_err(), "a directory is no file");

    let full = "#".repeat(limits::CONFIG_FILE);
    std::fs::write(path("full"), &full).unwrap();
    assert_eq!(found(Some("full"), &[], "usual").unwrap().map(|text| text.len()), Some(full.len()));
    std::fs::write(path("over"), full + "#").unwrap();
    assert!(found(Some("over"), &[], "usual").unwrap_err().to_string().contains("larger than the 1048576 bytes"));
    std::fs::write(path("latin1"), b"# \xe4").unwrap();
    assert!(found(Some("latin1"), &[], "usual").unwrap_err().to_string().contains("not UTF-8"));
    assert!(!told(&"#".repeat(limits::CONFIG_FILE + 1)).is_empty());
}

#[test]
fn variables_that_are_not_text_are_told_only_when_they_are_ours() {
    let bad = || OsString::from_vec(vec![0xff]);
    assert!(our_variables([("OTHER".into(), bad())].into_iter()).unwrap().is_empty());
    let problems = our_variables([("WATTD_LISTEN".into(), bad())].into_iter()).unwrap_err();
    assert_eq!(problems.to_string(), "WATTD_LISTEN: not UTF-8 text");
}

#[test]
fn the_most_plugs_fit_and_one_more_does_not() {
    let plugs = |n: usize| {
        let address = |i: usize| format!("[[plugs]]\naddress = \"10.0.{}.{}\"\n", i / 256, i % 256);
        (0..n).map(address).collect::<String>()
    };
    assert_eq!(accepted(&from_file(&plugs(limits::PLUGS))).config.plugs.len(), limits::PLUGS);
    assert_eq!(told(&plugs(limits::PLUGS + 1)).len(), 1);
    assert_eq!(told(&format!("[[plugs]]\naddress = \"10.0.0.1\"\nname = \"{}\"", "x".repeat(64))), [""; 0]);
    assert_eq!(told(&format!("[[plugs]]\naddress = \"10.0.0.1\"\nname = \"{}\"", "x".repeat(65))).len(), 1);
}

/// The example with the `#` taken away from its keys: prose has a space after the `#`.
fn uncommented() -> String {
    let key = |line: &str| {
        line.strip_prefix('#')
            .filter(|rest| rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()))
            .map(str::to_owned)
    };
    EXAMPLE.lines().map(|line| key(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn the_shipped_file_changes_nothing() {
    let loaded = accepted(&from_file(EXAMPLE));
    assert_eq!(loaded.config, accepted(&from_env(&[])).config);
    assert!(loaded.settings.iter().all(|setting| setting.origin == Origin::Default));
}

#[test]
fn the_shipped_file_has_every_key_at_its_default() {
    let loaded = accepted(&from_file(&uncommented()));
    for (key, setting) in KEYS.iter().zip(&loaded.settings) {
        assert!(setting.origin.line().is_some(), "{} is missing", setting.key);
        assert!(key.is_default(&setting.text) || setting.key == "timezone", "{} is {}", setting.key, setting.text);
    }
    assert_eq!(loaded.config.plugs.len(), 1);
    assert_eq!(Config { plugs: Vec::new(), ..loaded.config }, accepted(&from_env(&[])).config);
    assert_eq!(loaded.warnings, []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_file_makes_loading_panic(text in any::<String>()) {
        let _ = load(&from_file(&text));
    }

    #[test]
    fn no_file_that_looks_like_toml_makes_loading_panic(
        lines in proptest::collection::vec(
            (
                prop_oneof![
                    "\\[?\\[?(poll|plugs|http|x)\\]?\\]?",
                    "(interval|targets|address|listen|hosts|max_size|timezone)"
                ],
                prop_oneof![
                    "",
                    " = \"?[0-9a-z]{0,4}\"?",
                    " = \\[\"1.1.1.1\", ?[\",1{}\\[]{0,3}\\]?",
                    " = -?[0-9_x]{1,20}"
                ],
            ),
            0..12,
        )
    ) {
        let text: String = lines.into_iter().map(|(key, value)| key + &value + "\n").collect();
        let _ = load(&from_file(&text));
    }

    #[test]
    fn no_variable_makes_loading_panic(key in 0..KEYS.len(), text in any::<String>()) {
        let sources = from_env(&[(KEYS[key].variable().as_str(), text.as_str())]);
        let _ = load(&sources);
    }

    #[test]
    fn one_typing_error_in_a_key_is_mended(key in 0..KEYS.len(), at: prop::sample::Index, kind in 0..4) {
        let name = KEYS[key].path();
        let mut typed: Vec<char> = name.chars().collect();
        let at = at.index(typed.len());
        match kind {
            0 => { typed.remove(at); }
            1 => typed.insert(at, 'q'),
            2 => typed[at] = 'q',
            _ => { let other = (at + 1).min(typed.len() - 1); typed.swap(at, other); }
        }
        let typed: String = typed.into_iter().collect();
        prop_assume!(typed != name && !KEYS.iter().any(|key| key.path() == typed));
        let (section, bare) = typed.split_once('.').unwrap_or(("", &typed));
        prop_assert_eq!(keys::nearest_key(section, bare), Some(name));
    }
}

#[test]
fn a_credential_is_a_default_that_the_file_overrides() {
    let mut sources = Sources { machine: machine(), ..Sources::default() };
    sources.machine.credentials = vec!["/run/credentials/wattd.service/http-token".into()];
    let loaded = load(&sources).unwrap();
    let token = "/run/credentials/wattd.service/http-token";
    assert_eq!(loaded.config.http.token_file.as_deref(), Some(Path::new(token)));
    assert_eq!(loaded.config.account.password_file, None);
    let setting = loaded.settings.iter().find(|setting| setting.key == "http.token_file").unwrap();
    assert_eq!(setting.origin, Origin::Variable("CREDENTIALS_DIRECTORY".to_owned()));
    // It opens the door to other machines like any token.
    sources.file = Some(("w.toml".into(), "listen = \"0.0.0.0:8650\"".to_owned()));
    assert!(load(&sources).is_ok());
    sources.file = Some(("w.toml".into(), "http.token_file = \"/own\"".to_owned()));
    assert_eq!(load(&sources).unwrap().config.http.token_file.as_deref(), Some(Path::new("/own")));
}

#[test]
fn prices_are_read_exactly_and_every_moment_has_one() {
    let loaded = accepted(&from_file(
        "[tariff]\ncurrency = \"eur\"\nprice = 0.3215\nstanding_charge = \"0.45\"\n[[prices]]\nprice = 0.1\n\
         hours = \"22:00-06:00\"\n[[prices]]\nprice = 1\ndays = \"sat,sun\"\nseason = \"nov-mar\"\n",
    ));
    let tariff = &loaded.config.tariff;
    let price = |local: &str| tariff.at(local.parse().unwrap()).unwrap().to_string();
    assert_eq!(price("2026-11-21T12:00"), "1");
    assert_eq!(price("2026-11-21T23:00"), "0.1");
    assert_eq!(price("2026-11-23T12:00"), "0.3215");
    assert_eq!(tariff.currency.unwrap().to_string(), "EUR");
    assert_eq!(tariff.standing_charge.unwrap().to_string(), "0.45");
    assert_eq!(loaded.warnings, []);
    let shown = |key: &str| loaded.settings.iter().find(|s| s.key == key).map(|s| (s.text.as_str(), s.origin.line()));
    assert_eq!(shown("tariff.price"), Some(("0.3215", Some(3))));
    assert_eq!(shown("prices[0].hours"), Some(("22:00-06:00", Some(7))));
    assert_eq!(shown("prices[1].price"), Some(("1", Some(9))));
    let idle =
        accepted(&from_file("tariff.currency = \"EUR\"\n[[prices]]\nprice = 1\n[[prices]]\nprice = 2\ndays = \"sun\""));
    let line = "wattd.toml:4: this [[prices]] entry never holds, because those above it cover all its times";
    assert_eq!(idle.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [line]);
}

#[test]
fn what_is_wrong_with_a_tariff_is_said_with_what_to_write() {
    for (text, lines) in [
        (
            "[tariff]\nprice = 0.3\n",
            &["wattd.toml:2: there are prices and no currency; add to [tariff] a line such as `currency = \"EUR\"`"][..],
        ),
        (
            "[tariff]\ncurrency = \"EUR\"\nstanding_charge = 1\n",
            &[
                "wattd.toml:3: [tariff] has a currency or a standing charge and no price; add a line such as `price = 0.32`, or [[prices]]",
            ],
        ),
        (
            "[tariff]\ncurrency = \"EUR\"\n[[prices]]\nprice = 0.3\nhours = \"06:00-22:00\"\n",
            &[
                "wattd.toml:3: no price holds on Mondays at 00:00 around 1 jan; set `tariff.price`, or add a [[prices]] entry with nothing but a price at the end",
            ],
        ),
        ("[[prices]]\ndays = \"sun\"\n", &["wattd.toml:1: `prices`: this entry has no `price`; add one such as 0.32"]),
        (
            "[[prices]]\nprice = 0.3\nhours = \"6-22\"\n",
            &[
                "wattd.toml:3: `prices.hours`: `6-22` cannot be understood; allowed is times of day on quarter hours such as \"22:00-06:00\" or \"06:00-09:00,17:00-20:00\"",
            ],
        ),
        (
            "[[prices]]\nprice = -0.3\nday = \"sun\"\n",
            &[
                "wattd.toml:2: `prices.price`: `-0.3` cannot be understood; allowed is 0 to 1000000 with at most six decimals",
                "wattd.toml:3: unknown key `prices.day`; did you mean `prices.days`?",
            ],
        ),
        ("prices = 1\n", &["wattd.toml:1: `prices`: an integer is of no use here; allowed is one [[prices]] for each"]),
        (
            "tariff.price = true\n",
            &[
                "wattd.toml:1: `tariff.price`: a boolean is of no use here; allowed is 0 to 1000000 with at most six decimals, or empty for none",
            ],
        ),
        (
            "tariff.currency = \"euro\"\n",
            &[
                "wattd.toml:1: `tariff.currency`: `euro` cannot be understood; allowed is a code of three letters such as EUR, or empty for none",
            ],
        ),
    ] {
        assert_eq!(told(text), lines, "{text}");
    }
}
