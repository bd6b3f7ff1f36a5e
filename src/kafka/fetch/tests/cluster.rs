//! Brokers of the test's own on loopback sockets: they serve logs, and fail when they are told to.

use std::{
    collections::{BTreeMap, VecDeque},
    io::Write,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use protocol::TopicPartition;

use crate::fetch::{
    connection::tests::{Request, request},
    request::{FETCH, METADATA},
    testing::Log,
    wire::{Body, Reader},
};

/// What goes wrong with the next request that asks for records.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    CloseBefore,
    CloseWithin,
    CloseAfter,
    /// Of every partition.
    Code(i16),
    /// A byte of the first records sent.
    Damage,
    LeaveOut,
}

pub(super) struct Hosted {
    pub log: Log,
    pub leader: usize,
    pub epoch: i32,
}

/// A partition that a broker was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Served {
    pub broker: usize,
    pub partition: TopicPartition,
    pub offset: i64,
}

struct Node {
    address: SocketAddr,
    up: bool,
    sockets: Vec<TcpStream>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
pub(super) struct State {
    pub partitions: BTreeMap<TopicPartition, Hosted>,
    pub faults: VecDeque<Fault>,
    pub served: Vec<Served>,
    /// Requests of these kinds are not answered until it is lifted.
    pub holds_fetch: bool,
    pub holds_metadata: bool,
    pub throttle_ms: i32,
    /// Metadata says who leads even where it does not say where that is.
    pub names_absent_leaders: bool,
    nodes: Vec<Node>,
}

struct World {
    state: Mutex<State>,
    changed: Condvar,
}

/// Brokers 0, 1, …, one world between them.
pub(super) struct Cluster(Arc<World>);

impl Cluster {
    pub fn new(brokers: usize) -> Self {
        let world = World {
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        let cluster = Self(Arc::new(world));
        // An address of its own: the port of a broker that is stopped must not become that of another test's.
        static CLUSTERS: AtomicU16 = AtomicU16::new(1);
        let [high, low] = CLUSTERS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let host = Ipv4Addr::new(127, 1 + (std::process::id() % 200) as u8, high, low);
        for _ in 0..brokers {
            cluster.change(|state| {
                state.nodes.push(Node {
                    address: (host, 0).into(),
                    up: false,
                    sockets: Vec::new(),
                    accepting: None,
                });
            });
        }
        (0..brokers).for_each(|broker| cluster.start(broker));
        cluster
    }

    pub fn bootstrap(&self) -> String {
        let addresses: Vec<String> = self
            .0
            .state()
            .nodes
            .iter()
            .map(|node| node.address.to_string())
            .collect();
        addresses.join(",")
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.0.state());
        self.0.changed.notify_all();
        changed
    }

    pub fn change_log(&self, partition: &TopicPartition, change: impl FnOnce(&mut Log)) {
        self.change(|state| change(&mut state.partitions.get_mut(partition).unwrap().log));
    }

    pub fn host(&self, partition: &TopicPartition, leader: usize, log: Log) {
        let hosted = Hosted { log, leader, epoch: 1 };
        self.change(|state| state.partitions.insert(partition.clone(), hosted));
    }

    pub fn lead(&self, partition: &TopicPartition, leader: usize) {
        self.change(|state| {
            let hosted = state.partitions.get_mut(partition).unwrap();
            hosted.leader = leader;
            hosted.epoch += 1;
        });
    }

    /// At the address that it had before, if it had one.
    pub fn start(&self, broker: usize) {
        let address = self.0.state().nodes[broker].address;
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let world = Arc::clone(&self.0);
        self.change(|state| {
            let node = &mut state.nodes[broker];
            assert!(!node.up);
            (node.address, node.up) = (address, true);
            node.accepting = Some(thread::spawn(move || accept(&world, broker, &listener)));
        });
    }

    pub fn stop(&self, broker: usize) {
        let (address, accepting) = self.change(|state| {
            let node = &mut state.nodes[broker];
            node.up = false;
            for socket in node.sockets.drain(..) {
                // The client may have closed it.
                let _ = socket.shutdown(Shutdown::Both);
            }
            (node.address, node.accepting.take())
        });
        if let Some(accepting) = accepting {
            // Wakes it.
            drop(TcpStream::connect(address));
            accepting.join().unwrap();
        }
    }

    pub fn is_up(&self, broker: usize) -> bool {
        self.0.state().nodes[broker].up
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let brokers = self.0.state().nodes.len();
        (0..brokers).for_each(|broker| self.stop(broker));
    }
}

fn accept(world: &Arc<World>, broker: usize, listener: &TcpListener) {
    for socket in listener.incoming().flatten() {
        let mut state = world.state();
        let node = &mut state.nodes[broker];
        if !node.up {
            return;
        }
        node.sockets.push(socket.try_clone().unwrap());
        drop(state);
        let world = Arc::clone(world);
        thread::spawn(move || world.converse(broker, socket));
    }
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn converse(&self, broker: usize, mut socket: TcpStream) {
        while let Some(request) = request(&mut socket) {
            let (body, fault) = match (request.api_key, request.api_version) {
                FETCH => self.fetch(broker, &request),
                METADATA => (self.metadata(&request), None),
                other => panic!("{other:?}"),
            };
            let mut frame = Body::default();
            frame.count(body.0.len() + 4).i32(request.correlation);
            frame.0.extend(body.0);
            let length = match fault {
                Some(Fault::CloseBefore) => 0,
                Some(Fault::CloseWithin) => frame.0.len() / 2,
                _ => frame.0.len(),
            };
            let sent = socket.write_all(&frame.0[..length]);
            if sent.is_err() || matches!(fault, Some(Fault::CloseBefore | Fault::CloseWithin | Fault::CloseAfter)) {
                break;
            }
        }
        // There are copies of it.
        let _ = socket.shutdown(Shutdown::Both);
    }

    fn held(&self, is_held: impl Fn(&State) -> bool, broker: usize) -> MutexGuard<'_, State> {
        let mut state = self.state();
        while is_held(&state) && state.nodes[broker].up {
            state = self.changed.wait(state).unwrap();
        }
        state
    }

    fn metadata(&self, request: &Request) -> Body {
        let mut reader = Reader::new(&request.body);
        let topics = reader.length("").unwrap().unwrap();
        let topics: Vec<&str> = (0..topics).map(|_| reader.string("").unwrap().unwrap()).collect();
        let state = self.held(|state| state.holds_metadata, 0);
        let mut body = Body::default();
        let up: Vec<(usize, &Node)> = state.nodes.iter().enumerate().filter(|(_, node)| node.up).collect();
        body.i32(0).count(up.len());
        for (id, node) in up {
            body.i32(id as i32)
                .string(&node.address.ip().to_string())
                .i32(node.address.port().into())
                .i16(-1);
        }
        body.i16(-1).i32(0).count(topics.len());
        for topic in topics {
            let hosted: Vec<_> = state
                .partitions
                .iter()
                .filter(|(partition, _)| *partition.topic == *topic)
                .collect();
            body.i16(if hosted.is_empty() { 3 } else { 0 })
                .string(topic)
                .i8(0)
                .count(hosted.len());
            for (partition, hosted) in hosted {
                let led = state.nodes[hosted.leader].up || state.names_absent_leaders;
                body.i16(if led { 0 } else { 5 }).i32(partition.partition);
                body.i32(if led { hosted.leader as i32 } else { -1 }).i32(hosted.epoch);
                body.count(1).i32(0).count(1).i32(0).count(0);
            }
        }
        body
    }

    fn fetch(&self, broker: usize, request: &Request) -> (Body, Option<Fault>) {
        let asked = Asked::read(&request.body);
        let deadline = Instant::now() + asked.wait;
        let mut state = self.state();
        state
            .served
            .extend(asked.partitions.iter().map(|(partition, _, offset, _)| Served {
                broker,
                partition: partition.clone(),
                offset: *offset,
            }));
        drop(state);
        let mut state = self.held(|state| state.holds_fetch, broker);
        loop {
            let fault = state.faults.front().copied();
            let (body, immediate) = state.answer(broker, &asked, fault);
            let left = deadline.saturating_duration_since(Instant::now());
            if immediate || left.is_zero() || fault.is_some() || !state.nodes[broker].up {
                state.faults.pop_front();
                return (body, fault);
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

struct Asked {
    wait: Duration,
    bytes_max: usize,
    read_committed: bool,
    /// Leader epoch, offset and the most of bytes of each.
    partitions: Vec<(TopicPartition, i32, i64, usize)>,
}

impl Asked {
    fn read(body: &[u8]) -> Self {
        let mut reader = Reader::new(body);
        reader.i32("").unwrap();
        let wait = Duration::from_millis(reader.i32("").unwrap() as u64);
        reader.i32("").unwrap();
        let bytes_max = reader.i32("").unwrap() as usize;
        let read_committed = reader.i8("").unwrap() == 1;
        reader.take(8, "").unwrap();
        let mut partitions = Vec::new();
        for _ in 0..reader.length("").unwrap().unwrap() {
            let topic: Arc<str> = reader.string("").unwrap().unwrap().into();
            for _ in 0..reader.length("").unwrap().unwrap() {
                let partition = TopicPartition::new(Arc::clone(&topic), reader.i32("").unwrap());
                let (epoch, offset) = (reader.i32("").unwrap(), reader.i64("").unwrap());
                reader.i64("").unwrap();
                partitions.push((partition, epoch, offset, reader.i32("").unwrap() as usize));
            }
        }
        Self {
            wait,
            bytes_max,
            read_committed,
            partitions,
        }
    }
}

impl State {
    /// The answer as it is now, and whether there is anything in it.
    fn answer(&self, broker: usize, asked: &Asked, fault: Option<Fault>) -> (Body, bool) {
        let mut body = Body::default();
        let mut immediate = false;
        let mut sent_bytes = 0;
        let partitions = match fault {
            Some(Fault::LeaveOut) => &[],
            _ => &asked.partitions[..],
        };
        body.i32(self.throttle_ms).i16(0).i32(0).count(partitions.len());
        for (partition, epoch, offset, bytes_max) in partitions {
            body.string(&partition.topic).count(1).i32(partition.partition);
            let hosted = self.partitions.get(partition);
            let code = match (hosted, fault) {
                (_, Some(Fault::Code(code))) => code,
                (None, _) => 3,
                (Some(hosted), _) if hosted.leader != broker => 6,
                (Some(hosted), _) if *epoch < hosted.epoch => 74,
                (Some(hosted), _) if *epoch > hosted.epoch => 75,
                (Some(hosted), _) if !(hosted.log.start..=hosted.log.end).contains(offset) => 1,
                _ => 0,
            };
            let Some(Hosted { log, .. }) = hosted.filter(|_| code == 0) else {
                immediate = true;
                body.i16(code).i64(-1).i64(-1).i64(-1).i32(-1).i32(-1).i32(-1);
                continue;
            };
            let room = asked.bytes_max.saturating_sub(sent_bytes).min(*bytes_max);
            let mut sent = log.send(*offset, room, asked.read_committed);
            // Only the first of an answer comes whole, however large it is.
            if sent_bytes > 0 && sent.bytes.len() > room {
                sent.bytes.clear();
            }
            if matches!(fault, Some(Fault::Damage)) && sent_bytes == 0 && !sent.bytes.is_empty() {
                *sent.bytes.last_mut().unwrap() ^= 0x40;
            }
            sent_bytes += sent.bytes.len();
            body.i16(0)
                .i64(log.end)
                .i64(log.stable_end())
                .i64(log.start)
                .count(sent.aborted.len());
            for aborted in &sent.aborted {
                body.i64(aborted.producer).i64(aborted.first_offset);
            }
            body.i32(-1).bytes(&sent.bytes);
        }
        (body, immediate || sent_bytes > 0)
    }
}
