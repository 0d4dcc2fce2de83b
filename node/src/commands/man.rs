//! `skein completions` and `skein man`: what is generated from the command line's own description.

use crate::cli;
use crate::output::print;
use anyhow::Context;
use clap::Args;
use std::path::{Path, PathBuf};

/// Print the completions of skein, mosrun and mosps for a shell.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLE\n  skein completions bash > ~/.local/share/bash-completion/completions/skein")]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Write the manual pages.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLE\n  skein man --out ~/.local/share/man/man1 && man skein-node-launch")]
pub struct ManArgs {
    /// Directory for the pages, made if needed
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Prints completions.
pub fn completions(args: CompletionsArgs) -> anyhow::Result<()> {
    let mut text = Vec::new();
    for mut command in cli::all() {
        let name = command.get_name().to_owned();
        clap_complete::generate(args.shell, &mut command, name, &mut text);
    }
    Ok(print(&String::from_utf8(text)?)?)
}

/// Writes a page for each command and subcommand.
pub fn pages(args: ManArgs) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    for mut command in cli::all() {
        command.build();
        page(&args.out, &command)?;
    }
    Ok(())
}

fn page(out: &Path, command: &clap::Command) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).manual("Skein").render(&mut text)?;
    let path = out.join(format!("{name}.1"));
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let mut visible = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    visible.try_for_each(|sub| page(out, sub))
}
