//! Flag beats variable beats file beats default.

use crate::args::Cli;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

/// Why the command line was not taken.
pub(crate) enum Refused {
    /// clap says it.
    Usage(clap::Error),
    /// The file cannot be used.
    Config(String),
}

/// The resolved arguments, and where they come from.
pub(crate) struct Arguments {
    pub(crate) matches: ArgMatches,
    from_file: FromFile,
}

/// Arguments whose default comes from the file: each command with the argument's id.
type FromFile = BTreeSet<(String, String)>;

impl Arguments {
    /// The argument `id` of the command was given: on the command line, by a variable or in the
    /// file.
    pub(crate) fn is_asked(&self, id: &str) -> bool {
        let Some((command, matches)) = self.matches.subcommand() else { return false };
        // What the command does not have was not given.
        if !matches.ids().any(|other| other == id) {
            return false;
        }
        match matches.value_source(id) {
            Some(ValueSource::DefaultValue) => self.from_file.contains(&(command.to_owned(), id.to_owned())),
            source => source.is_some(),
        }
    }
}

/// The whole command, with a variable for every flag.
pub(crate) fn command() -> Command {
    with_variables(Cli::command())
}

fn with_variables(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let is_flag = arg.get_long().is_some() && !matches!(arg.get_id().as_str(), "help" | "version");
        if !is_flag {
            return arg;
        }
        let name = format!("FASTDROP_{}", arg.get_id().as_str().to_uppercase());
        arg.env(name).hide_env_values(true)
    });
    command.mut_subcommands(with_variables)
}

/// Parses the command line, with defaults from the file that it or `FASTDROP_CONFIG` names, or that
/// is in the usual place.
pub(crate) fn matches(arguments: Vec<OsString>) -> Result<Arguments, Refused> {
    let named = named_file(&arguments).or_else(|| std::env::var_os("FASTDROP_CONFIG").map(PathBuf::from));
    let file = match named {
        Some(path) => Some(path),
        None => usual_file().filter(|path| path.exists()),
    };
    let mut from_file = FromFile::new();
    let Some(path) = file else {
        let matches = command().try_get_matches_from(arguments).map_err(Refused::Usage)?;
        return Ok(Arguments { matches, from_file });
    };
    let shown = path.display();
    let text =
        std::fs::read_to_string(&path).map_err(|error| Refused::Config(format!("{shown}: {error}")))?;
    let table: toml::Table = text.parse().map_err(|error| Refused::Config(format!("{shown}: {error}")))?;
    let command = with_defaults(command(), &table, &mut from_file)
        .map_err(|why| Refused::Config(format!("{shown}: {why}")))?;
    let matches = command.try_get_matches_from(&arguments).map_err(|error| {
        // What is right without the file is wrong because of it.
        match self::command().try_get_matches_from(&arguments) {
            Ok(_) => Refused::Config(format!(
                "{shown}: {}",
                error.to_string().trim_start_matches("error: ").trim_end()
            )),
            Err(_) => Refused::Usage(error),
        }
    })?;
    Ok(Arguments { matches, from_file })
}

fn named_file(arguments: &[OsString]) -> Option<PathBuf> {
    let mut arguments = arguments.iter().skip(1).take_while(|argument| *argument != "--");
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(path) = argument.to_str().and_then(|argument| argument.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    None
}

fn usual_file() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let folder =
        folder.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(folder.join("fastdrop.toml"))
}

/// Makes the file's values the defaults: keys at the top for every command, in a table for the one
/// of its name.
fn with_defaults(
    mut command: Command,
    table: &toml::Table,
    from_file: &mut FromFile,
) -> Result<Command, String> {
    for (key, value) in table {
        if let toml::Value::Table(inner) = value {
            if command.find_subcommand(key).is_none() {
                return Err(format!("there is no command {key:?}"));
            }
            for (key, value) in inner {
                let sub = table_name(table, inner);
                // `[message.listen]`: a table in the table.
                if let toml::Value::Table(nested) = value {
                    let one = toml::Table::from_iter([(key.clone(), toml::Value::Table(nested.clone()))]);
                    let mut refused = None;
                    command = command.mut_subcommand(sub, |sub| {
                        match with_defaults(sub.clone(), &one, from_file) {
                            Ok(sub) => sub,
                            Err(why) => {
                                refused = Some(why);
                                sub
                            }
                        }
                    });
                    match refused {
                        Some(why) => return Err(why),
                        None => continue,
                    }
                }
                let text = text(key, value)?;
                let known =
                    command.find_subcommand(&sub).is_some_and(|sub| has(sub, key)) || has(&command, key);
                if !known {
                    return Err(format!("{sub} has no flag --{key}"));
                }
                let id = key.replace('-', "_");
                command = if has(&command, key) {
                    command.mut_arg(id, |arg| arg.default_value(text))
                } else {
                    from_file.insert((sub.clone(), id.clone()));
                    command.mut_subcommand(sub, |sub| sub.mut_arg(id, |arg| arg.default_value(text)))
                };
            }
            continue;
        }
        let text = text(key, value)?;
        let id = key.replace('-', "_");
        let mut known = has(&command, key);
        if known {
            command = command.mut_arg(&id, |arg| arg.default_value(text.clone()));
        }
        let subs: Vec<_> = command
            .get_subcommands()
            .filter(|sub| has(sub, key))
            .map(|sub| sub.get_name().to_owned())
            .collect();
        for sub in subs {
            known = true;
            from_file.insert((sub.clone(), id.clone()));
            command =
                command.mut_subcommand(sub, |sub| sub.mut_arg(&id, |arg| arg.default_value(text.clone())));
        }
        if !known {
            return Err(format!("there is no flag --{key}"));
        }
    }
    Ok(command)
}

fn table_name(table: &toml::Table, inner: &toml::Table) -> String {
    let found =
        table.iter().find(|(_, value)| value.as_table().is_some_and(|table| std::ptr::eq(table, inner)));
    found.map(|(key, _)| key.clone()).unwrap_or_default()
}

fn has(command: &Command, key: &str) -> bool {
    command.get_arguments().any(|arg| arg.get_long() == Some(key))
}

fn text(key: &str, value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        _ => Err(format!("{key} is neither a text nor a number nor true or false")),
    }
}
