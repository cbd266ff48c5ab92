//! From resolved arguments to what is done.

use crate::address::{Address, AddressError};
use crate::args::{Cli, Color, Command, Common, Get, List, Progress, Send, Serve, Transfer};
use crate::begin::{Refused, begin};
use crate::config::Arguments;
use crate::exit::ExitCode;
use crate::output::{Output, OutputError, complain, print};
use crate::progress::Shown;
use crate::signals::Signals;
use clap::FromArgMatches;
use fastdrop::{
    Asked, Client, ClientOptions, Destination, Error, Filter, Flag, GetOptions, NextDpCompression, Observer,
    Password, Protocol, Put, PutOptions, Server, ServerOptions, Summary, Target, shown,
};
use serde_json::json;
use signal_hook::consts::SIGPIPE;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind::BrokenPipe;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Does what the arguments say.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let cli = match Cli::from_arg_matches(&arguments.matches) {
        Ok(cli) => cli,
        Err(error) => return answer(&error),
    };
    match cli.common.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    let result = match cli.command {
        Command::Serve(serve) => self::serve(&cli.common, serve),
        Command::Send(send) => self::send(&cli.common, send, asked(arguments)),
        Command::Get(get) => self::get(&cli.common, get, asked(arguments)),
        Command::List(list) => self::list(&cli.common, list),
        Command::Message(message) => crate::message::run(&cli.common, message),
        Command::Completions { shell } => completions(shell),
        Command::Man => man(),
    };
    match result {
        Ok(code) => code,
        Err(Refused::Usage(why)) => {
            complain(&why);
            ExitCode::Usage
        }
        Err(Refused::Failed(error)) => {
            complain(&format!("{error:#}"));
            ExitCode::Other
        }
        Err(Refused::Output(error)) => error.report(""),
    }
}

/// Prints what clap has to say: help and version are results, everything else is a complaint.
pub(crate) fn answer(error: &clap::Error) -> ExitCode {
    let printed = error.print().and_then(|()| std::io::stdout().flush());
    match printed.map_err(OutputError::from) {
        _ if error.use_stderr() => ExitCode::Usage,
        Ok(()) => ExitCode::Done,
        Err(error) => error.report(""),
    }
}

/// Made in memory first: the generators panic where their output cannot be written.
fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Refused> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::config::command(), "fastdrop", &mut script);
    print(&script)?;
    Ok(ExitCode::Done)
}

fn man() -> Result<ExitCode, Refused> {
    let mut page = Vec::new();
    clap_mangen::Man::new(crate::config::command()).render(&mut page).map_err(anyhow::Error::from)?;
    print(&page)?;
    Ok(ExitCode::Done)
}

// ---- serve ----

fn serve(common: &Common, serve: Serve) -> Result<ExitCode, Refused> {
    let (stop, signals) = begin(common, "info")?;
    let output = Output { json: common.json, quiet: common.quiet, data_on_stdout: false };
    let mut options = ServerOptions::new(serve.dir.clone());
    options.bind = serve.bind.iter().map(|address| address.with_port(serve.port)).collect();
    options.accept = serve.accept.clone();
    options.fastdownloader = serve.fastdownloader;
    options.fastdownloader_dialect = serve.fastdownloader_dialect.into();
    options.header_timeout = serve.header_timeout;
    options.nextdp_compression = match serve.nextdp_gzip {
        true => NextDpCompression::Gzip,
        false => serve.nextdp_compression.into(),
    };
    options.ultradp_password = serve.ultradp_password_file.as_deref().map(password).transpose()?;
    options.keep_archive = serve.keep_archive;
    options.read_only = serve.read_only;
    options.write_only = serve.write_only;
    options.existing = serve.existing.into();
    options.streams_max = serve.max_streams;
    options.size_max = serve.max_size;
    options.free_min = serve.min_free;
    options.once = serve.once;
    options.checkpoint = serve.checkpoint.0;
    options.expire = serve.expire;
    let server = match Server::bind(options, stop) {
        Ok(server) => server,
        Err(error) => {
            complain(&error.to_string());
            return Ok(ExitCode::of_kind(error.kind()));
        }
    };
    match announce(&server, &serve, output) {
        // Whoever wanted the address has it, and goes.
        Err(error) if error.is_closed_pipe() => {}
        announced => announced?,
    }
    server.run().map_err(anyhow::Error::from)?;
    Ok(signals.seen().map_or(ExitCode::Done, ExitCode::Signal))
}

/// Says where the server listens, and how it is reached.
fn announce(server: &Server, serve: &Serve, output: Output) -> Result<(), OutputError> {
    for address in server.addresses() {
        listening(output, "fastdp", address)?;
        output.say(&format!("listening on {}", url(address)))?;
        // A server on every address is reached by the machine's name.
        let host = if address.ip().is_unspecified() {
            let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            format!("{name}:{}", address.port())
        } else {
            address.to_string()
        };
        if !serve.read_only {
            output.say(&format!("  fastdrop send FILE... {host}"))?;
        }
        if !serve.write_only {
            output.say(&format!("  fastdrop get {host}/ DIR"))?;
        }
    }
    for address in server.fastdownloader_addresses() {
        listening(output, "fastdownloader", address)?;
        output.say(&format!("listening on {address} for fastdownloader"))?;
    }
    Ok(())
}

fn listening(output: Output, protocol: &str, address: SocketAddr) -> Result<(), OutputError> {
    let (ip, port) = (Address::from(address).to_string(), address.port());
    output.event("listening", json!({ "protocol": protocol, "address": ip, "port": port }))
}

/// The URL of a server; the percent sign before a zone is encoded in it (RFC 6874).
fn url(address: SocketAddr) -> String {
    format!("http://{}", address.to_string().replace('%', "%25"))
}

// ---- send, get, list ----

fn target(text: &OsStr, protocol: Protocol) -> Result<Target, Refused> {
    let target = Target::parse(text, protocol.port()).map_err(|error| Refused::Usage(error.to_string()))?;
    // The resolver's words for a zone that is missing or wrong say nothing.
    match target.host.parse::<Address>() {
        Ok(_) | Err(AddressError::NotAnAddress) => Ok(target),
        Err(error) => Err(Refused::Usage(format!("{}: {error}", shown(target.host.as_bytes())))),
    }
}

/// The flags that were given, with whatever value. A switch that is off was not.
fn asked(arguments: &Arguments) -> Asked {
    Flag::all().filter(|flag| arguments.is_asked(&flag.name().replace('-', "_"))).collect()
}

fn options(transfer: &Transfer, mut asked: Asked) -> Result<ClientOptions, Refused> {
    if !transfer.check {
        asked.remove(&Flag::Check);
    }
    if !transfer.no_resume {
        asked.remove(&Flag::NoResume);
    }
    let listed = transfer.files_from.as_deref().map(read_list).transpose()?.flatten();
    let filter = Filter::new(&transfer.exclude, &transfer.include, listed);
    Ok(ClientOptions {
        protocol: transfer.protocol,
        compress: transfer.compress.into(),
        streams: transfer.streams,
        checksum: transfer.checksum.into(),
        durability: transfer.durability.into(),
        existing: transfer.existing.into(),
        check: transfer.check,
        resume: !transfer.no_resume,
        times: transfer.preserve.times,
        mode: transfer.preserve.mode,
        links: transfer.links.into(),
        checkpoint: transfer.checkpoint.0,
        filter: filter.map_err(|error| Refused::Usage(error.to_string()))?,
        bytes_per_second_max: transfer.bwlimit,
        ultradp_password: None,
        retries: transfer.retries,
        asked,
    })
}

/// The password in a file. Whoever else can read the file is warned of.
fn password(file: &Path) -> Result<Password, Refused> {
    let password = Password::read(file).map_err(|error| Refused::Usage(error.to_string()))?;
    if std::fs::metadata(file).is_ok_and(|found| found.mode() & 0o077 != 0) {
        let file = shown(file.as_os_str().as_bytes());
        let why = "others may read this password; chmod 600 keeps it from them";
        let _ = writeln!(anstream::stderr(), "warning: {file}: {why}");
    }
    Ok(password)
}

/// The paths in a file, one a line; None for all.
fn read_list(file: &Path) -> Result<Option<Vec<Vec<u8>>>, Refused> {
    let mut text = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut text))
    };
    read.map_err(|error| Refused::Usage(format!("{}: {error}", shown(file.as_os_str().as_bytes()))))?;
    Ok(listed_paths(&text))
}

/// The paths of a list as they are in a manifest: without slashes and dots that say nothing. The
/// folder itself, which `find` names first, means everything.
fn listed_paths(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    // A list from a system whose lines end in CR LF has no other lines; else a CR belongs to a
    // name.
    let lines = || text.split_inclusive(|&byte| byte == b'\n');
    let end: &[u8] = match lines().all(|line| line.ends_with(b"\r\n") || !line.ends_with(b"\n")) {
        true => b"\r\n",
        false => b"\n",
    };
    let lines = lines().map(|line| line.strip_suffix(end).unwrap_or(line));
    let path = |line: &[u8]| {
        let components = line.split(|&byte| byte == b'/').filter(|name| !matches!(name, [] | [b'.']));
        components.collect::<Vec<_>>().join(&b'/')
    };
    let paths: Vec<_> = lines.filter(|line| !line.is_empty()).map(path).collect();
    paths.iter().all(|path| !path.is_empty()).then_some(paths)
}

fn send(common: &Common, mut send: Send, asked: Asked) -> Result<ExitCode, Refused> {
    let target = match send.paths.pop() {
        Some(text) => target(&text, send.transfer.protocol)?,
        None => return Err(Refused::Usage("what, and where to?".into())),
    };
    if send.paths.is_empty() && send.transfer.files_from.is_some() {
        send.paths.push("./".into());
    }
    if send.paths.is_empty() {
        return Err(Refused::Usage("nothing to send was named; the last argument is the target".into()));
    }
    if send.transfer.files_from.is_some() {
        // The list is relative to the folder.
        let [path] = &mut send.paths[..] else {
            return Err(Refused::Usage("--files-from goes with one folder".into()));
        };
        if !path.as_bytes().ends_with(b"/") {
            path.push("/");
        }
    }
    let mut options = options(&send.transfer, asked)?;
    options.ultradp_password = send.ultradp_password_file.as_deref().map(password).transpose()?;
    let what = sources(&send.paths, &target)?;
    let (dry_run, unconfirmed_ok) = (send.transfer.dry_run, send.transfer.unconfirmed_ok);
    let put = |client: &Client| client.put(what, PutOptions { dry_run });
    transfer(common, target, options, unconfirmed_ok, false, "sent", put)
}

/// Standard input, and a pipe that is named, is sent as a stream; everything else by its path.
fn sources(paths: &[OsString], target: &Target) -> Result<Put, Refused> {
    let is_pipe = |path: &OsString| std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    if !paths.iter().any(|path| path == "-" || is_pipe(path)) {
        return Ok(Put::Paths(paths.iter().map(PathBuf::from).collect()));
    }
    let [path] = paths else {
        return Err(Refused::Usage("standard input or a pipe is sent alone".into()));
    };
    if target.path.is_empty() || target.path.ends_with(b"/") {
        return Err(Refused::Usage(
            "standard input or a pipe has no name: name the file in the target, as in HOST/FILE".into(),
        ));
    }
    let failed = |error: std::io::Error| {
        let name = if path == "-" { "standard input".into() } else { shown(path.as_bytes()) };
        Refused::Failed(anyhow::anyhow!("{name}: {error}"))
    };
    let stream = if path == "-" {
        std::io::stdin().as_fd().try_clone_to_owned().map(File::from)
    } else {
        File::open(path)
    };
    let stream = stream.map_err(failed)?;
    if stream.metadata().map_err(failed)?.is_dir() {
        return Err(Refused::Usage("standard input is a folder: name its path instead".into()));
    }
    Ok(Put::Stream(Box::new(stream)))
}

fn get(common: &Common, get: Get, asked: Asked) -> Result<ExitCode, Refused> {
    let target = target(&get.target, get.transfer.protocol)?;
    let options = options(&get.transfer, asked)?;
    let to_output = get.dest == Path::new("-");
    let destination = if to_output {
        Destination::Output(Box::new(standard_output()?))
    } else {
        Destination::Path(get.dest)
    };
    let how = GetOptions { dry_run: get.transfer.dry_run, keep_archive: get.keep_archive };
    let unconfirmed_ok = get.transfer.unconfirmed_ok;
    let work = |client: &Client| client.get(destination, how);
    transfer(common, target, options, unconfirmed_ok, to_output, "got", work)
}

/// Standard output without a buffer in which the last bytes could be lost.
fn standard_output() -> Result<File, Refused> {
    let output = std::io::stdout().as_fd().try_clone_to_owned().map_err(OutputError::from)?;
    Ok(File::from(output))
}

fn transfer(
    common: &Common,
    target: Target,
    options: ClientOptions,
    unconfirmed_ok: bool,
    data_on_stdout: bool,
    verb: &str,
    work: impl FnOnce(&Client) -> Result<Summary, Error>,
) -> Result<ExitCode, Refused> {
    let (stop, signals) = begin(common, "warn")?;
    let output = Output { json: common.json, quiet: common.quiet, data_on_stdout };
    let observer = Arc::new(Observer::default());
    let quiet = common.quiet || (common.json && common.progress == Progress::Auto);
    let how = if quiet { Progress::None } else { common.progress };
    let progress = Shown::start(how, Arc::clone(&observer));
    let resumes = options.protocol == Protocol::FastDp;
    let result = work(&Client::new(target, options, observer, stop));
    drop(progress);
    Ok(match result {
        Ok(summary) => {
            let code = match (summary.files_failed, summary.confirmed) {
                (1.., _) => ExitCode::Partly,
                (0, true) => ExitCode::Done,
                (0, false) => ExitCode::Unconfirmed,
            };
            let code = code.unless_unconfirmed(unconfirmed_ok);
            match output.summary(verb, &summary) {
                Err(error) if !error.is_closed_pipe() => {
                    let lost = error.report(&format!("{verb} as summarised, but the summary is lost: "));
                    if code == ExitCode::Done { lost } else { code }
                }
                // Whoever does not read the summary is not told of it.
                _ => code,
            }
        }
        Err(Error::System { source, .. }) if data_on_stdout && source.kind() == BrokenPipe => {
            ExitCode::Signal(SIGPIPE as u8)
        }
        Err(error) => fail(error, output, &signals, resumes),
    })
}

/// Reports why nothing, or not all, was done. After a signal it is the reason, whatever broke
/// because of it.
fn fail(error: Error, output: Output, signals: &Signals, resumes: bool) -> ExitCode {
    let error = if signals.seen().is_some() { Error::Interrupted } else { error };
    let code = ExitCode::of(&error, signals.seen());
    output.error(&error, code.number(), resumes);
    code
}

fn list(common: &Common, list: List) -> Result<ExitCode, Refused> {
    let target = target(&list.target, list.protocol)?;
    let (stop, signals) = begin(common, "warn")?;
    let output = Output { json: common.json, quiet: common.quiet, data_on_stdout: false };
    let (protocol, retries) = (list.protocol, list.retries);
    let options = ClientOptions { protocol, retries, ..ClientOptions::default() };
    let client = Client::new(target, options, Arc::new(Observer::default()), stop);
    let listed = match list.protocol {
        Protocol::FastDownloader => client.names().map(|names| (output.names(&names), ExitCode::Done)),
        _ => client.list().map(|listing| {
            let code = match (listing.failed_count, listing.confirmed) {
                (1.., _) => ExitCode::Partly,
                (0, true) => ExitCode::Done,
                (0, false) => ExitCode::Unconfirmed,
            };
            (output.list(&listing), code)
        }),
    };
    Ok(match listed {
        Ok((printed, code)) => {
            printed?;
            code.unless_unconfirmed(list.unconfirmed_ok)
        }
        Err(error) => fail(error, output, &signals, false),
    })
}

#[cfg(test)]
mod tests {
    use super::listed_paths;

    #[test]
    fn a_list_names_paths_as_other_tools_print_them() {
        let listed = |text: &str| {
            let paths = listed_paths(text.as_bytes())?;
            Some(paths.into_iter().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>().join(" "))
        };
        for (text, expected) in [
            ("", Some("")),
            ("\n\n", Some("")),
            ("a\nb/c\n", Some("a b/c")),
            ("a\r\nb", Some("a b")),
            ("a\r\nb\r", Some("a b\r")),
            ("a\r", Some("a\r")),
            ("a\r\nb\n", Some("a\r b")),
            ("b\na\r\n", Some("b a\r")),
            ("./a\n./b/\n", Some("a b")),
            ("a//b\na/./b\n/a/b\n", Some("a/b a/b a/b")),
            (".a\n..\n../a\n...\n", Some(".a .. ../a ...")),
            (".\n./a\n", None),
            ("./\n", None),
            ("/\n", None),
        ] {
            assert_eq!(listed(text).as_deref(), expected, "{text:?}");
        }
    }
}
