//! Names of hosts.

use std::io;
use std::iter::Copied;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::{slice, vec};

use super::super::world::{self, What};
use super::core::LOCALHOST;

/// As [`std::net::ToSocketAddrs`]; names are those the driver set.
pub trait ToSocketAddrs {
    type Iter: Iterator<Item = SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter>;
}

fn one(address: SocketAddr) -> io::Result<vec::IntoIter<SocketAddr>> {
    Ok(vec![address].into_iter())
}

/// What may be made an address without being looked up.
macro_rules! literal {
    ($($what:ty),*) => {$(
        impl ToSocketAddrs for $what {
            type Iter = vec::IntoIter<SocketAddr>;

            fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
                one((*self).into())
            }
        }
    )*};
}
literal!(SocketAddr, SocketAddrV4, SocketAddrV6, (IpAddr, u16), (Ipv4Addr, u16), (Ipv6Addr, u16));

impl ToSocketAddrs for (&str, u16) {
    type Iter = vec::IntoIter<SocketAddr>;

    #[track_caller]
    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        if let Ok(ip) = self.0.parse() {
            return one(SocketAddr::new(ip, self.1));
        }
        let addresses: Vec<_> = look_up(self.0)?.into_iter().map(|ip| SocketAddr::new(ip, self.1)).collect();
        Ok(addresses.into_iter())
    }
}

impl ToSocketAddrs for (String, u16) {
    type Iter = vec::IntoIter<SocketAddr>;

    #[track_caller]
    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        (&*self.0, self.1).to_socket_addrs()
    }
}

impl ToSocketAddrs for str {
    type Iter = vec::IntoIter<SocketAddr>;

    #[track_caller]
    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        if let Ok(address) = self.parse() {
            return one(address);
        }
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let (host, port) = self.rsplit_once(':').ok_or_else(|| invalid("invalid socket address"))?;
        let port: u16 = port.parse().map_err(|_| invalid("invalid port value"))?;
        (host, port).to_socket_addrs()
    }
}

impl ToSocketAddrs for String {
    type Iter = vec::IntoIter<SocketAddr>;

    #[track_caller]
    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        (**self).to_socket_addrs()
    }
}

impl<'a> ToSocketAddrs for &'a [SocketAddr] {
    type Iter = Copied<slice::Iter<'a, SocketAddr>>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        Ok(self.iter().copied())
    }
}

impl<T: ToSocketAddrs + ?Sized> ToSocketAddrs for &T {
    type Iter = T::Iter;

    #[track_caller]
    fn to_socket_addrs(&self) -> io::Result<T::Iter> {
        (**self).to_socket_addrs()
    }
}

/// Errors are in the words of the C library, as the standard library passes them on.
#[track_caller]
fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    let world = world::current();
    world.may_fail("getaddrinfo")?;
    let failed = |words| io::Error::other(format!("failed to lookup address information: {words}"));
    let meaning = world.network.act(|core| core.names.get(name).cloned());
    let takes = meaning.as_ref().map_or(std::time::Duration::ZERO, |meaning| meaning.takes);
    world::wait(What::Socket, &[], Some(world.now().saturating_add(takes)), || None::<()>);
    match meaning {
        None if name == "localhost" => Ok(vec![LOCALHOST]),
        Some(meaning) if meaning.no_server => Err(failed("Temporary failure in name resolution")),
        Some(meaning) if !meaning.addresses.is_empty() => Ok(meaning.addresses),
        _ => Err(failed("Name or service not known")),
    }
}
