//! Under which addresses others may reach this host.

use super::wire::roster::MOST_ADDRESSES;
use nix::net::if_::InterfaceFlags;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port that hosts listen on, if nothing else is said.
pub const PORT: u16 = 4774;

/// Where to listen, if nothing is said: everywhere.
pub fn everywhere() -> SocketAddr {
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    // A kernel without IPv6 cannot make such a socket at all; whether the port is free is found out later.
    match std::net::UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))) {
        Ok(_) => v6,
        Err(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
    }
}

/// Where a host that listens at `listen` can be reached: there, or at all its interfaces.
pub fn reachable(listen: SocketAddr) -> Vec<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return vec![listen];
    }
    let mut found: Vec<IpAddr> = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let up = interface.flags.contains(InterfaceFlags::IFF_UP);
        if !up || interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        match v4.or(v6) {
            // Of use on one link only, and not without naming it.
            Some(IpAddr::V6(v6)) if v6.is_unicast_link_local() || listen.is_ipv4() => {}
            Some(IpAddr::V4(v4)) if v4.is_link_local() => {}
            Some(ip) if !found.contains(&ip) => found.push(ip),
            _ => {}
        }
    }
    found.sort_by_key(IpAddr::is_ipv6);
    if found.is_empty() {
        found.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    found.truncate(MOST_ADDRESSES);
    found.into_iter().map(|ip| SocketAddr::new(ip, listen.port())).collect()
}

/// The address as it is where IPv4 has come through an IPv6 socket.
pub fn plain(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_in_one_place_is_there() {
        let one = "127.0.0.5:9".parse().unwrap();
        assert_eq!(reachable(one), [one]);
    }

    #[test]
    fn who_listens_everywhere_can_be_reached_somewhere() {
        let all = reachable(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9)));
        assert!(!all.is_empty() && all.iter().all(|address| address.port() == 9 && !address.ip().is_unspecified()));
        assert_eq!(plain("::ffff:10.1.2.3".parse().unwrap()), IpAddr::from([10, 1, 2, 3]));
    }
}
