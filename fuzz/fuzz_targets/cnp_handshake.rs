//! The JSON of CNP's handshake.

#![no_main]

use fastdrop_proto::cnp::handshake::{Syn, read_ack, read_syn_ack, write_ack};
use fastdrop_proto::cnp::{Carrier, Layout, SessionConfig, SessionId, SynForm, WINDOW_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    for (layout, syn_form) in [(Layout::Plain, SynForm::Full), (Layout::Marked, SynForm::Fourth)] {
        let config = SessionConfig { syn_form, ..SessionConfig::server(Carrier::Stream) };
        handshake(payload, layout, &config);
    }
    if let Ok(id) = read_ack(payload) {
        assert_eq!(read_ack(&write_ack(&id)).expect("its own ACK can be read"), id);
    }
});

fn handshake(payload: &[u8], layout: Layout, config: &SessionConfig) {
    if let Ok(syn) = Syn::parse(payload, layout) {
        let (agreed, answer) = syn.answer(config, SessionId::Text("x".into()));
        assert!((1..=WINDOW_MAX).contains(&agreed.window));
        assert!((1..=config.packet_max).contains(&agreed.packet_max));
        // Whoever would have asked for as much agrees to the same.
        let read = read_syn_ack(&answer, config).expect("its own answer can be read");
        assert_eq!(
            (read.mode, read.window, read.packet_max),
            (agreed.mode, agreed.window, agreed.packet_max)
        );
    }
    if let Ok(agreed) = read_syn_ack(payload, config) {
        assert!((1..=WINDOW_MAX).contains(&agreed.window));
        assert!((1..=config.packet_max).contains(&agreed.packet_max));
    }
}
