//! A connection that has been upgraded and has settled what is done over it.

use crate::admission::permit::ConnectionPermit;
use crate::client::Client;
use crate::context::client::connect::{Upgraded, new_key};
use crate::context::client::options::Compress;
use crate::error::Error;
use crate::net::connection::{Connection, Ended};
use crate::net::frames::FrameReader;
use crate::transfer::manifest::offer;
use crate::transfer::setup::Agreement;
use crate::transfer::streams::DataStream;
use fastdrop_proto::fastdp::{
    self, Capability, Code, Control, Do, FrameHeader, Grant, Header, Links, Manifest, Open, Streams,
    Transcript, UpgradeRequest, Version,
};
use fastdrop_proto::units::ChunkSize;
use std::sync::Arc;
use std::time::Duration;

/// A connection after the upgrade and the headers.
pub(super) struct Agreed {
    pub(super) reader: FrameReader,
    pub(super) server: Header,
    pub(super) server_json: Vec<u8>,
    pub(super) client_json: Vec<u8>,
    pub(super) open_json: Vec<u8>,
}

impl Client {
    /// Connects and upgrades, with a key of its own.
    fn connect(&self, version: Version) -> Result<(Arc<Connection>, Vec<u8>, Duration), Error> {
        let Upgraded { connection, early, rtt, .. } =
            self.context.connect_as(&UpgradeRequest::new(new_key()?, version))?;
        Ok((connection, early, rtt))
    }

    /// Connects, and sends the header, the OPEN and, in a put, the
    /// manifest; reads the server's header.
    pub(super) fn agree(
        &self,
        mut open: Open,
        header: &Header,
        manifest: Option<&Manifest>,
    ) -> Result<Agreed, Error> {
        let (connection, early, rtt) = self.connect(Version::V2)?;
        self.context.stop.watch(&connection);
        open.rtt_micros = u64::try_from(rtt.as_micros()).unwrap_or(0);
        let client = header.encode();
        let open = Control::Open(open).encode();
        let mut reader = FrameReader::new(Arc::clone(&connection), early);
        let first = [&client[..], &open].concat();
        let sent = connection.send(&mut [std::io::IoSlice::new(&first)], usize::MAX, |_| Duration::ZERO);
        let offer = |manifest: &Manifest| offer(&connection, manifest, Vec::new());
        let sent = sent.and_then(|()| manifest.map_or(Ok(()), offer));
        // A server that refuses does not wait for the rest: its reason
        // counts, not that it stopped listening.
        if let Err(ended @ (Ended::Silent | Ended::Stopped)) = sent {
            return Err(ended.into());
        }
        let (server, server_json) = read_header(&mut reader)?;
        Ok(Agreed {
            reader,
            server,
            server_json,
            client_json: client[Header::PREFIX_LEN..].to_vec(),
            open_json: open[FrameHeader::LEN..].to_vec(),
        })
    }

    /// Puts together what has been agreed; `grant_json` is the JSON of `grant`.
    pub(super) fn agreement(
        &self,
        agreed: &Agreed,
        grant: &Grant,
        grant_json: &[u8],
        one_chunk: ChunkSize,
    ) -> Agreement {
        let Agreed { reader, server_json, client_json, open_json, .. } = agreed;
        Agreement {
            control: Arc::clone(reader.connection()),
            grant: grant.clone(),
            transcript: Transcript::new(client_json, open_json, server_json, grant_json),
            one_chunk,
            checksum: self.context.options.checksum,
            rtt: self.context.rtt(),
            turns: None,
            observer: Arc::clone(&self.context.observer),
            stop: self.context.stop.clone(),
        }
    }

    /// Opens one more data stream of `transfer`.
    pub(super) fn join(&self, grant: &Grant) -> Result<DataStream, Error> {
        let open = Open { transfer: grant.transfer, ..Open::new(Do::Join) };
        let header = Header::new(ChunkSize::COMMON, 0, 0, "");
        let mut agreed = self.agree(open, &header, None)?;
        match agreed.reader.next_control()? {
            Control::Grant(_) => {
                Ok(DataStream { reader: agreed.reader, permit: ConnectionPermit::default() })
            }
            Control::Refuse(refuse) => Err(Error::Refused(refuse)),
            _ => Err(Error::protocol("the server answers with something else than GRANT")),
        }
    }

    /// How a sender that speaks fastdp compresses.
    pub(super) fn compress(&self) -> Result<fastdp::Compress, Error> {
        Ok(match self.context.options.compress {
            Compress::Auto => fastdp::Compress::Auto,
            Compress::None => fastdp::Compress::None,
            Compress::Zstd => fastdp::Compress::Zstd,
            Compress::Zip => fastdp::Compress::Zip,
            Compress::TarGz => fastdp::Compress::TarGz,
            Compress::Gzip => {
                return Err(Error::failed(Code::BadRequest, "fastdp does not compress with gzip alone"));
            }
        })
    }

    pub(super) fn open(&self, r#do: Do) -> Result<Open, Error> {
        let options = &self.context.options;
        Ok(Open {
            path: self.context.target.path.clone(),
            streams: match options.streams {
                Streams::Auto => 16,
                Streams::Fixed(streams) => streams.clamp(1, 64),
            },
            adapt: options.streams == Streams::Auto,
            checksum: options.checksum,
            existing: options.existing,
            durability: options.durability,
            times: options.times,
            mode: options.mode,
            // A put's links are chosen here; an older server would refuse a value that it does not
            // know.
            links: if r#do == Do::Get { options.links } else { Links::default() },
            resume: options.resume,
            check: options.check && matches!(r#do, Do::Put | Do::Preview),
            checkpoint: options.checkpoint,
            compress: self.compress()?,
            rate_max: options.bytes_per_second_max.filter(|_| r#do == Do::Get),
            ..Open::new(r#do)
        })
    }

    /// Nothing is downgraded in silence, and nothing upgraded either.
    pub(super) fn check_grant(&self, grant: &Grant) -> Result<(), Error> {
        if grant.checksum != self.context.options.checksum
            || grant.durability != self.context.options.durability
        {
            return Err(Error::protocol("the server grants something else than was asked for"));
        }
        if self.context.options.check && !grant.has(Capability::Content) {
            return Err(Error::failed(
                Code::Unsupported,
                "the server is too old to compare contents, which --check asks for",
            ));
        }
        let (capability, name) = match self.context.options.compress {
            Compress::Zstd => (Capability::Zstd, "Zstandard"),
            Compress::Zip => {
                (Capability::ZipTimes, "exact times in ZIP archives; --compress targz keeps them")
            }
            Compress::TarGz => (Capability::Archive, "archives"),
            Compress::Auto | Compress::None | Compress::Gzip => return Ok(()),
        };
        if grant.has(capability) {
            Ok(())
        } else {
            Err(Error::failed(Code::Unsupported, format!("the server does not know {name}")))
        }
    }
}

fn read_header(reader: &mut FrameReader) -> Result<(Header, Vec<u8>), Error> {
    let mut prefix = [0; Header::PREFIX_LEN];
    reader.fill(&mut prefix)?;
    let mut bytes = prefix.to_vec();
    // Refused before anything is allocated for it, if it is too long.
    Header::decode(&prefix)?;
    bytes.extend(reader.payload(u32::from_be_bytes(prefix))?);
    let decoded = Header::decode(&bytes)?;
    let (header, json, _) = decoded.ok_or_else(|| Error::protocol("a header that is not complete"))?;
    let json = json.to_vec();
    Ok((header, json))
}

pub(super) fn read_grant(reader: &mut FrameReader) -> Result<(Grant, Vec<u8>), Error> {
    use fastdrop_proto::fastdp::FrameKind;
    let header = reader.header()?;
    let FrameKind::Control(kind) = header.kind else {
        return Err(Error::protocol("a chunk where GRANT must be"));
    };
    let payload = reader.payload(header.size)?;
    match Control::decode(kind, &payload)? {
        Control::Grant(grant) => Ok((grant, payload)),
        Control::Refuse(refuse) => Err(Error::Refused(refuse)),
        _ => Err(Error::protocol("the server answers with something else than GRANT")),
    }
}
