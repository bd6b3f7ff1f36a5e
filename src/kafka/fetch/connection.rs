//! One connection to one broker.

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use super::wire::Body;
use crate::{Error, KafkaConfig};

pub(super) struct Connection {
    stream: TcpStream,
    client_id: String,
    next: i32,
    under_way: VecDeque<i32>,
}

fn failed(error: io::Error) -> Error {
    Error::retriable("broker connection", error)
}

impl Connection {
    pub fn open(_config: &KafkaConfig, client_id: &str, address: &str, timeout: Duration) -> Result<Self, Error> {
        let mut last = io::Error::other("no address");
        for address in address.to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&address, timeout) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(failed)?;
                    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(failed)?;
                    return Ok(Self {
                        stream,
                        client_id: client_id.to_owned(),
                        next: 0,
                        under_way: VecDeque::new(),
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    pub fn send(&mut self, api_key: i16, api_version: i16, body: &Body) -> Result<i32, Error> {
        self.next = self.next.wrapping_add(1);
        let mut frame = Body::default();
        frame
            .i32(0)
            .i16(api_key)
            .i16(api_version)
            .i32(self.next)
            .string(&self.client_id);
        frame.0.extend_from_slice(&body.0);
        let length = (frame.0.len() - 4) as i32;
        frame.0[..4].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&frame.0).map_err(failed)?;
        self.under_way.push_back(self.next);
        Ok(self.next)
    }

    pub fn receive(&mut self, buffer: &mut Vec<u8>) -> Result<usize, Error> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(failed)?;
        let length = i32::from_be_bytes(length) as usize;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        self.stream.read_exact(&mut buffer[..length]).map_err(failed)?;
        self.under_way.pop_front();
        Ok(length)
    }

    pub fn breaker(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }
}
