//! Typed messages as JSON, over TCP, over UDP, or over whichever suits each message.

use super::types::{Frame, FrameType, VstpError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

mod client;
mod server;

pub use client::VstpClient;
pub use server::VstpServer;

/// The time that an operation may take if nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(30);

fn to_frame<T: Serialize>(value: &T) -> Result<Frame, VstpError> {
    let payload = serde_json::to_vec(value)
        .map_err(|error| VstpError::Protocol(format!("Serialization error: {error}")))?;
    Ok(Frame::new(FrameType::Data).with_header("content-type", "application/json").with_payload(payload))
}

fn from_payload<T: DeserializeOwned>(payload: &[u8]) -> Result<T, VstpError> {
    serde_json::from_slice(payload)
        .map_err(|error| VstpError::Protocol(format!("Deserialization error: {error}")))
}

async fn within<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, VstpError>>,
) -> Result<T, VstpError> {
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(VstpError::Timeout))
}
