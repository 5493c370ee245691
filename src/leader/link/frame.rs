//! What is written to a follower.

use super::socket::SocketWriter;
use crate::protocol::FrameWriter;

/// What the stream of one follower is written to: batches go around the frame writer's buffer, already encoded.
pub(in crate::leader) type Frame = FrameWriter<SocketWriter>;
