//! Writes the manual page and the completions into a directory, from the command line's own definition. For packages: they
//! are made when those are, and not linked into wattd.
//!
//!     cargo run --example texts -- DIR

use std::fs;
use std::path::PathBuf;

use clap_complete::{Shell, generate_to};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: texts DIR")?);
    fs::create_dir_all(&dir)?;
    let mut command = wattd::cli::args::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "wattd", &dir)?;
    }
    // The verbs stand in the one page, each with its own options: nobody looks for wattd-read(1).
    let mut page = Vec::new();
    let manual = clap_mangen::Man::new(command.clone()).date("2026-11-25").source("wattd").manual("User Commands");
    manual.render_title(&mut page)?;
    manual.render_name_section(&mut page)?;
    page.extend(b".SH SYNOPSIS\n\\fBwattd\\fR \\fIVERB\\fR [\\fIOPTIONS\\fR]\n");
    manual.render_description_section(&mut page)?;
    page.extend(b".SH VERBS\n");
    command.build();
    verbs(&command, "wattd", &mut page);
    manual.render_options_section(&mut page)?;
    manual.render_extra_section(&mut page)?;
    page.extend(
        b".SH FILES\n.TP\n\\fI/etc/wattd/wattd.toml\\fR\nThe settings.\n.TP\n\\fI/etc/wattd/token\\fR\nWhat clients must send, \
          once other machines may ask.\n.TP\n\\fI/etc/wattd/password\\fR\nThe password of the TP\\-Link account.\n.TP\n\
          \\fI/var/lib/wattd/wattd.redb\\fR\nThe readings.\n",
    );
    fs::write(dir.join("wattd.1"), page)?;
    Ok(())
}

/// What each verb does, and the options that are its own.
fn verbs(command: &clap::Command, name: &str, page: &mut Vec<u8>) {
    let plain = |text: String| text.replace('\\', "\\\\").replace('-', "\\-");
    for verb in command.get_subcommands() {
        let name = format!("{name} {}", verb.get_name());
        if verb.has_subcommands() {
            verbs(verb, &name, page);
            continue;
        }
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        page.extend(format!(".TP\n\\fB{}\\fR", plain(name)).bytes());
        for own in verb.get_positionals() {
            page.extend(format!(" \\fI{}\\fR", plain(own.get_id().to_string().to_uppercase())).bytes());
        }
        page.extend(format!("\n{}\n", plain(about)).bytes());
        let own = verb.get_opts().chain(verb.get_arguments().filter(|arg| !arg.get_action().takes_values()));
        for option in own.filter(|arg| !arg.is_global_set() && arg.get_id() != "help" && arg.get_id() != "version") {
            let Some(long) = option.get_long() else { continue };
            let value = option.get_value_names().filter(|_| option.get_action().takes_values());
            let value = value.and_then(|names| names.first()).map(|name| format!(" {name}")).unwrap_or_default();
            let help = option.get_help().map(ToString::to_string).unwrap_or_default();
            page.extend(format!(".br\n\\fB{}\\fR: {}\n", plain(format!("--{long}{value}")), plain(help)).bytes());
        }
    }
}
