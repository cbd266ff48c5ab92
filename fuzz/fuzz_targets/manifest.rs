//! Manifests as they come in frames, and the chunk table that follows from them.

#![no_main]

use arbitrary::Arbitrary;
use fastdrop_fuzz::check_table;
use fastdrop_proto::fastdp::{ManifestBuilder, ManifestEnd, ManifestError, Table};
use fastdrop_proto::units::ChunkSize;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Line<'a> {
    kind: u8,
    /// Most names ascend; this one need not.
    name: Option<&'a [u8]>,
    beneath: bool,
    mode: u16,
    size: u64,
    small: bool,
    target: &'a [u8],
}

#[derive(Debug, Arbitrary)]
enum Part<'a> {
    Raw(&'a [u8]),
    Lines(Vec<Line<'a>>),
}

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    parts: Vec<Part<'a>>,
    chunk: u8,
    entries_max: u16,
    list: bool,
    lie: Option<(u32, u64, u64)>,
}

fuzz_target!(|input: Input<'_>| {
    let max = input.entries_max.into();
    let mut builder = if input.list { ManifestBuilder::for_list(max) } else { ManifestBuilder::new(max) };
    let (mut number, mut folder) = (0, String::new());
    let mut sent = Vec::new();
    for part in &input.parts {
        let bytes = match part {
            Part::Raw(bytes) => bytes.to_vec(),
            Part::Lines(lines) => {
                let mut bytes = Vec::new();
                for line in lines {
                    let kind = line.kind % 5;
                    let mut name = format!("{number:06}");
                    number += 1;
                    if line.beneath && !folder.is_empty() {
                        name = format!("{folder}/{name}");
                    } else if kind == 2 {
                        folder.clone_from(&name);
                    }
                    let name = line.name.unwrap_or(name.as_bytes());
                    bytes.push(kind);
                    bytes.extend((name.len() as u16).to_be_bytes());
                    bytes.extend(name);
                    bytes.extend(u32::from(line.mode & 0o1777).to_be_bytes());
                    bytes.extend([0; 12]);
                    match kind {
                        1 if line.small => bytes.extend((line.size % 5000).to_be_bytes()),
                        1 => bytes.extend(line.size.to_be_bytes()),
                        3 => {
                            bytes.extend((line.target.len() as u16).to_be_bytes());
                            bytes.extend(line.target);
                        }
                        _ => {}
                    }
                }
                bytes
            }
        };
        if builder.handle_part(&bytes).is_err() {
            return;
        }
        sent.extend(bytes);
    }
    if let Some((entries, bytes, digest)) = input.lie {
        let end = ManifestEnd { entries, bytes, digest };
        if let Ok(manifest) = builder.clone().handle_end(&end) {
            assert_eq!(manifest.end(), end);
        }
    }
    let Ok(manifest) = builder.clone().finish() else { return };
    let end = manifest.end();
    assert_eq!(builder.clone().handle_end(&end).unwrap(), manifest);
    let other = ManifestEnd { digest: end.digest ^ 1, ..end };
    assert_eq!(builder.handle_end(&other), Err(ManifestError::Totals));

    assert!(manifest.len() <= max);
    assert_eq!(manifest.iter().count(), manifest.len() as usize);
    for (at, entry) in manifest.iter() {
        assert_eq!(manifest.get(at), Some(entry));
    }
    for size in [1, 100, 1 << 20] {
        assert_eq!(manifest.parts(size).collect::<Vec<_>>().concat(), sent);
    }
    let chunk = ChunkSize::new(1024 << (input.chunk % 15)).unwrap();
    if let Ok(table) = Table::new(&manifest, chunk) {
        check_table(&manifest, &table);
    }
});
