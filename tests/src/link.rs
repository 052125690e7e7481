//! A home link: a network of its own for one worker, with limited rates, delay and loss on the way to the hub.
//!
//! ```text
//!  near namespace                  this process                 far namespace
//!  worker ─▶ tun, tbf "up" ─▶ delay, loss, count ─▶ tun  ─▶ relay's listener ─▶ hub on loopback
//!            tun ◀─ delay, loss, count ◀─ tun, tbf "down" ◀─┘
//! ```
//!
//! The kernel's `tbf` shapes the rate at the sending end of each direction, as a modem does. Delay and loss are done here, on
//! whole IP packets between two TUN devices (this needs no `netem`, which not every kernel has): TCP feels both, from its
//! handshake on. Bytes are counted here too, IP and TCP headers, acknowledgements and packets sent again included; what
//! Ethernet or a modem would add is not.
//!
//! Namespaces have no names: they go when the last process in them does, and a crash leaves nothing behind.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::{
    ioctl,
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};
use tokio::{
    io::unix::AsyncFd,
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::relay::Relay;

/// The worker's address, in a network of two.
const NEAR: &str = "10.99.0.2/30";
/// The hub's address, as the worker sees it.
const FAR: &str = "10.99.0.1/30";
const FAR_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const NETWORK: &str = "10.99.0.0/30";
/// The name of the device at both ends.
const DEVICE: &str = "link";
/// Bytes of a packet, as on Ethernet.
const PACKET_BYTES_MAX: usize = 1_500;
/// What `tbf` lets through at once: a few packets.
const BURST_BYTES: u32 = 8 * 1_514;
/// The longest that a packet waits in the modem before it is dropped.
const QUEUE: &str = "100ms";
/// Linux's usual congestion control is chosen here, whatever this machine's servers use.
const CONGESTION_CONTROL: &str = "cubic";
/// Packets on their way; a further one is lost.
const PACKETS_MAX: usize = 8_192;

/// What a link is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Bits a second from the worker.
    pub up_bits_per_s: u64,
    /// Bits a second to the worker.
    pub down_bits_per_s: u64,
    /// There and back, without queues.
    pub round_trip: Duration,
    /// Packets of a million that are lost, each way.
    pub loss_ppm: u32,
}

impl Shape {
    /// 10 Mb/s up, 50 Mb/s down, 40 ms, nothing lost but what the queues drop.
    pub const HOME: Self = Self {
        up_bits_per_s: 10_000_000,
        down_bits_per_s: 50_000_000,
        round_trip: Duration::from_millis(40),
        loss_ppm: 0,
    };
}

/// Bytes and packets of one direction, as IP sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes with IP and TCP headers.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// A link; it is gone when this is dropped.
#[derive(Debug)]
pub struct Link {
    near: Namespace,
    relay: Relay,
    up: Arc<Counter>,
    down: Arc<Counter>,
    _wire: JoinSet<()>,
}

/// A network namespace without a name.
#[derive(Debug)]
struct Namespace(OwnedFd);

#[derive(Debug, Default)]
struct Counter {
    bytes: AtomicU64,
    packets: AtomicU64,
}

impl Link {
    /// A link to a hub on this machine's loopback.
    ///
    /// # Errors
    /// A sentence that says what is missing: the right to make networks (root), `/dev/net/tun`, or `ip` and `tc` (Debian's
    /// iproute2).
    pub fn to(hub: std::net::SocketAddr, shape: Shape) -> Result<Self> {
        let (near, far) = (Namespace::new()?, Namespace::new()?);
        let near_device = near.device(NEAR, shape.up_bits_per_s)?;
        let far_device = far.device(FAR, shape.down_bits_per_s)?;
        let near_device = Arc::new(watched(near_device)?);
        let far_device = Arc::new(watched(far_device)?);
        let (up, down) = (Arc::<Counter>::default(), Arc::<Counter>::default());
        let mut wire = JoinSet::new();
        let ways = [
            (&near_device, &far_device, &up),
            (&far_device, &near_device, &down),
        ];
        for (from, to, counter) in ways {
            let (sender, receiver) = mpsc::channel(PACKETS_MAX);
            wire.spawn(take(
                Arc::clone(from),
                sender,
                Arc::clone(counter),
                shape.round_trip / 2,
                Lottery::new(shape.loss_ppm),
            ));
            wire.spawn(give(Arc::clone(to), receiver));
        }
        let listener = far.within(|| std::net::TcpListener::bind((FAR_ADDRESS, 0)))??;
        listener.set_nonblocking(true)?;
        Ok(Self {
            near,
            relay: Relay::serve(TcpListener::from_std(listener)?, hub)?,
            up,
            down,
            _wire: wire,
        })
    }

    /// The hub's address at the worker's end.
    #[must_use]
    pub fn hub_url(&self) -> String {
        self.relay.url()
    }

    /// Has a program start at the worker's end.
    ///
    /// # Errors
    /// If there are no more file descriptors.
    pub fn put_in(&self, command: &mut Command) -> Result<()> {
        self.near.put_in(command)
    }

    /// What has passed so far: (from the worker, to the worker).
    #[must_use]
    pub fn traffic(&self) -> (Traffic, Traffic) {
        (self.up.read(), self.down.read())
    }
}

impl Namespace {
    fn new() -> Result<Self> {
        let made = std::thread::spawn(|| -> io::Result<OwnedFd> {
            // SAFETY: a new network concerns this thread alone, which ends with this closure; no file descriptors are unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        });
        let namespace = made.join().expect("it does not panic").context(
            "this machine does not permit networks of one's own: shaped links need root",
        )?;
        Ok(Self(namespace))
    }

    /// Runs `work` on a thread inside.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let network = Some(LinkNameSpaceType::Network);
                    move_into_link_name_space(self.0.as_fd(), network)?;
                    Ok(work())
                })
                .join()
                .expect("it does not panic")
        })
    }

    fn put_in(&self, command: &mut Command) -> Result<()> {
        let namespace = self.0.try_clone()?;
        // SAFETY: between fork and exec only setns is called, which is safe there; it allocates nothing.
        unsafe {
            command.pre_exec(move || {
                let network = Some(LinkNameSpaceType::Network);
                Ok(move_into_link_name_space(namespace.as_fd(), network)?)
            });
        }
        Ok(())
    }

    /// Makes the TUN device of this end, with an address and the rate at which it sends.
    fn device(&self, address: &str, bits_per_s: u64) -> Result<OwnedFd> {
        let device = self.within(open_tun)??;
        let mtu = PACKET_BYTES_MAX.to_string();
        self.run("ip", &["address", "add", address, "dev", DEVICE])?;
        self.run("ip", &["link", "set", "dev", DEVICE, "mtu", &mtu, "up"])?;
        let mut route = vec!["route", "change", NETWORK, "dev", DEVICE];
        route.extend(["congctl", CONGESTION_CONTROL]);
        self.run("ip", &route)?;
        let (rate, burst) = (format!("{bits_per_s}bit"), BURST_BYTES.to_string());
        let mut shaping = vec!["qdisc", "add", "dev", DEVICE, "root", "tbf"];
        shaping.extend(["rate", &rate, "burst", &burst, "latency", QUEUE]);
        self.run("tc", &shaping)?;
        Ok(device)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command.args(arguments);
        self.put_in(&mut command)?;
        let output = command.output().with_context(|| {
            format!("cannot start `{program}`: install Debian's iproute2 (`cargo xtask setup`)")
        })?;
        if !output.status.success() {
            bail!(
                "{program} {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}

/// A TUN device in this thread's network, without the header that tells protocols apart, not blocking.
fn open_tun() -> Result<OwnedFd> {
    /// `_IOW('T', 202, int)` of linux/if_tun.h.
    const TUNSETIFF: ioctl::Opcode = ioctl::opcode::write::<i32>(b'T', 202);
    /// `IFF_TUN | IFF_NO_PI`.
    const FLAGS: u16 = 0x0001 | 0x1000;
    /// `struct ifreq` of linux/if.h: 16 bytes of name, then the flags.
    const REQUEST_BYTES: usize = 40;
    let device = rustix::fs::open(
        "/dev/net/tun",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .context("/dev/net/tun cannot be opened: shaped links need it")?;
    let mut request = [0_u8; REQUEST_BYTES];
    request[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
    request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
    // SAFETY: the operation reads an `ifreq`, which the array is as long as and laid out like.
    unsafe {
        let set = ioctl::Setter::<TUNSETIFF, [u8; REQUEST_BYTES]>::new(request);
        ioctl::ioctl(&device, set).context("cannot make a TUN device: shaped links need root")?;
    }
    Ok(device)
}

fn watched(device: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps naming the same open file until it is dropped.
    unsafe { Ok(AsyncFd::register(device)?) }
}

/// Takes packets from one end, counts them, loses some, and dates the others.
async fn take(
    from: Arc<AsyncFd<OwnedFd>>,
    sender: mpsc::Sender<(Instant, Vec<u8>)>,
    counter: Arc<Counter>,
    delay: Duration,
    mut lottery: Lottery,
) {
    let mut buffer = [0; PACKET_BYTES_MAX];
    loop {
        let read = from.async_io(tokio::io::Interest::READABLE, |fd| {
            Ok(rustix::io::read(fd, &mut buffer)?)
        });
        let Ok(bytes) = read.await else {
            return;
        };
        counter.count(bytes);
        if !lottery.loses() {
            let packet = (Instant::now() + delay, buffer[..bytes].to_vec());
            // A full queue loses the packet, as a router's does.
            let _ = sender.try_send(packet);
        }
    }
}

/// Gives packets to the other end when they are due; they stay in order.
async fn give(to: Arc<AsyncFd<OwnedFd>>, mut receiver: mpsc::Receiver<(Instant, Vec<u8>)>) {
    while let Some((due, packet)) = receiver.recv().await {
        sleep_until(due).await;
        let write = to.async_io(tokio::io::Interest::WRITABLE, |fd| {
            Ok(rustix::io::write(fd, &packet)?)
        });
        // A packet that the device does not take is lost, and TCP mends it.
        let _ = write.await;
    }
}

impl Counter {
    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.packets.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Traffic {
        Traffic {
            bytes: self.bytes.load(Ordering::Relaxed),
            packets: self.packets.load(Ordering::Relaxed),
        }
    }
}

/// Which packets are lost: the same ones each time.
#[derive(Debug)]
struct Lottery {
    loss_ppm: u32,
    state: u64,
}

impl Lottery {
    fn new(loss_ppm: u32) -> Self {
        Self {
            loss_ppm,
            state: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Marsaglia's xorshift64.
    fn loses(&mut self) -> bool {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 32) % 1_000_000 < u64::from(self.loss_ppm)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Bytes that the test sends each way.
    const BYTES: usize = 1 << 20;

    /// Tries: on a machine that is busy elsewhere for a tenth of a second a link looks slow.
    const TRIES: usize = 5;

    #[tokio::test(flavor = "multi_thread")]
    async fn rates_delay_and_headers_are_as_stated() -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            // Making networks is root's; `cargo xtask bench home-link` says so too.
            return Ok(());
        }
        let mut others = Vec::new();
        for _ in 0..TRIES {
            let found = Found::measured().await?;
            let [up, down] = found.times.map(|it| it.as_secs_f64());
            // 8.4 Mb: 0.84 s up and 0.17 s down at least; what stalled on its way down comes at once.
            assert!(found.connected >= Shape::HOME.round_trip, "{found:?}");
            assert!(up >= 0.8, "{found:?}");
            let bytes = found.bytes.map(|it| it as f64 / BYTES as f64);
            assert!(bytes.iter().all(|it| *it > 1.03), "{found:?}");
            // Slow start may double it.
            let is_as_stated = found.connected < Shape::HOME.round_trip * 4
                && up < 2.5
                && (0.12..1.5).contains(&down);
            if is_as_stated && bytes.iter().all(|it| *it < 1.15) {
                return Ok(());
            }
            others.push(found);
        }
        panic!("the link is not as stated: {others:?}")
    }

    /// What a transfer over a home's link shows.
    #[derive(Debug)]
    struct Found {
        connected: Duration,
        /// Up and down.
        times: [Duration; 2],
        /// On the link, sent and received.
        bytes: [u64; 2],
    }

    impl Found {
        async fn measured() -> Result<Self> {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let link = Link::to(listener.local_addr()?, Shape::HOME)?;
            let server = tokio::task::spawn_blocking(move || -> io::Result<()> {
                let (mut stream, _) = listener.accept()?;
                stream.read_exact(&mut vec![0; BYTES])?;
                stream.write_all(&vec![1; BYTES])?;
                stream.read_exact(&mut [0])
            });
            let address = link.hub_url().replace("http://", "");
            let client = tokio::task::spawn_blocking(move || -> Result<_> {
                let found = link.near.within(|| -> Result<_> {
                    let begun = std::time::Instant::now();
                    let mut stream = std::net::TcpStream::connect(address)?;
                    let connected = begun.elapsed();
                    let begun = std::time::Instant::now();
                    stream.write_all(&vec![2; BYTES])?;
                    let mut answer = vec![0; BYTES];
                    stream.read_exact(&mut answer[..1])?;
                    let up = begun.elapsed();
                    stream.read_exact(&mut answer[1..])?;
                    let down = begun.elapsed().saturating_sub(up);
                    stream.write_all(&[3])?;
                    let (sent, received) = link.traffic();
                    Ok(Self {
                        connected,
                        times: [up, down],
                        bytes: [sent.bytes, received.bytes],
                    })
                })??;
                Ok((link, found))
            });
            let (_link, found) = client.await??;
            server.await??;
            Ok(found)
        }
    }

    #[test]
    fn as_much_is_lost_as_was_asked_for() {
        let mut lottery = Lottery::new(20_000);
        let lost = (0..100_000).filter(|_| lottery.loses()).count();
        assert!((1_800..2_200).contains(&lost), "{lost}");
        let mut none = Lottery::new(0);
        assert!((0..100_000).all(|_| !none.loses()));
    }
}
