/* Everything that happens once: the log, mempools, and a device's way from its name to a started port. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_flow.h>
#include <rte_log.h>
#include <rte_mbuf.h>

/* Mbufs that a thread keeps to itself: two bursts. More would be cold before they are used again. */
enum { MEMPOOL_CACHE = 2 * VELO_BURST };

static ssize_t log_write(void *cookie, const char *text, size_t len) {
    const int level = rte_log_cur_msg_loglevel();
    ((velo_log)cookie)(level < 0 ? RTE_LOG_NOTICE : (uint32_t)level, text, len);
    return (ssize_t)len;
}

int velo_log_to(velo_log log) {
    FILE *stream = fopencookie((void *)log, "w", (cookie_io_functions_t){.write = log_write});
    if (stream == NULL)
        return -errno;
    setvbuf(stream, NULL, _IOLBF, BUFSIZ);
    return rte_openlog_stream(stream);
}

int velo_errno(void) { return rte_errno; }

struct rte_mempool *velo_mempool_create(const char *name, uint32_t mbufs, uint32_t room, int numa_node, int *error) {
    struct rte_mempool *pool =
        rte_pktmbuf_pool_create(name, mbufs, MEMPOOL_CACHE, 0, (uint16_t)(room + RTE_PKTMBUF_HEADROOM), numa_node);
    *error = pool == NULL ? -rte_errno : 0;
    return pool;
}

int velo_port_configure(const char *name, const struct velo_request *request, struct velo_answer *answer, uint16_t *port) {
    struct rte_eth_dev_info info;
    struct rte_eth_conf conf;
    int rc;

    answer->stage = VELO_FIND;
    if ((rc = rte_eth_dev_get_port_by_name(name, port)) != 0)
        return rc;
    answer->stage = VELO_INFO;
    if ((rc = rte_eth_dev_info_get(*port, &info)) != 0)
        return rc;
    answer->stage = VELO_QUEUES;
    if (request->queues > RTE_MIN(info.max_rx_queues, info.max_tx_queues))
        return -EINVAL;
    answer->numa_node = rte_eth_dev_socket_id(*port);

    memset(&conf, 0, sizeof conf);
    const uint64_t fills = RTE_ETH_TX_OFFLOAD_UDP_CKSUM | RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
    const uint64_t checks = RTE_ETH_RX_OFFLOAD_UDP_CKSUM | RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
    if (request->offload && (info.tx_offload_capa & fills) == fills) {
        conf.txmode.offloads |= fills;
        answer->offloads |= VELO_OFFLOAD_FILLS;
    }
    if (request->offload && (info.rx_offload_capa & checks) == checks) {
        conf.rxmode.offloads |= checks;
        answer->offloads |= VELO_OFFLOAD_CHECKS;
    }
    /* Drivers that split what does not fit the smallest piece they know; it is joined again in velo_rx_burst. */
    conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_SCATTER & info.rx_offload_capa;
    /* All mbufs of a queue come from one mempool and have one owner. */
    conf.txmode.offloads |= RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE & info.tx_offload_capa;
    const uint64_t hash = (RTE_ETH_RSS_NONFRAG_IPV4_UDP | RTE_ETH_RSS_NONFRAG_IPV6_UDP) & info.flow_type_rss_offloads;
    if (request->queues > 1 && hash != 0) {
        conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
        conf.rx_adv_conf.rss_conf.rss_hf = hash;
        answer->steering = VELO_STEERING_HASH;
    }
    if (request->mtu != 0)
        conf.rxmode.mtu = RTE_MAX(RTE_MIN(request->mtu, info.max_mtu), info.min_mtu);
    answer->stage = VELO_CONFIGURE;
    if ((rc = rte_eth_dev_configure(*port, (uint16_t)request->queues, (uint16_t)request->queues, &conf)) != 0)
        return rc;
    uint16_t rx = (uint16_t)request->descriptors, tx = (uint16_t)request->descriptors;
    if ((rc = rte_eth_dev_adjust_nb_rx_tx_desc(*port, &rx, &tx)) != 0)
        return rc;
    answer->rx_descriptors = rx;
    answer->tx_descriptors = tx;
    answer->frame_max_bytes = info.max_rx_pktlen;
    return 0;
}

int velo_port_queue(uint16_t port, uint16_t queue, const struct velo_answer *answer, struct rte_mempool *mempool, uint32_t *stage) {
    const int node = rte_eth_dev_socket_id(port);
    int rc;
    *stage = VELO_RX_QUEUE;
    if ((rc = rte_eth_rx_queue_setup(port, queue, (uint16_t)answer->rx_descriptors, (unsigned)node, NULL, mempool)) != 0)
        return rc;
    *stage = VELO_TX_QUEUE;
    return rte_eth_tx_queue_setup(port, queue, (uint16_t)answer->tx_descriptors, (unsigned)node, NULL);
}

/* UDP to port `udp_port` goes to `queue`, by IPv4 or IPv6. */
static int flow_rule(uint16_t port, uint16_t queue, uint16_t udp_port, enum rte_flow_item_type ip) {
    const struct rte_flow_attr attr = {.ingress = 1};
    const struct rte_flow_item_udp spec = {.hdr.dst_port = rte_cpu_to_be_16(udp_port)}, mask = {.hdr.dst_port = 0xffff};
    const struct rte_flow_item pattern[] = {
        {.type = RTE_FLOW_ITEM_TYPE_ETH},
        {.type = ip},
        {.type = RTE_FLOW_ITEM_TYPE_UDP, .spec = &spec, .mask = &mask},
        {.type = RTE_FLOW_ITEM_TYPE_END},
    };
    const struct rte_flow_action_queue to = {.index = queue};
    const struct rte_flow_action actions[] = {
        {.type = RTE_FLOW_ACTION_TYPE_QUEUE, .conf = &to},
        {.type = RTE_FLOW_ACTION_TYPE_END},
    };
    struct rte_flow_error error;
    const int rc = rte_flow_validate(port, &attr, pattern, actions, &error);
    if (rc != 0)
        return rc;
    return rte_flow_create(port, &attr, pattern, actions, &error) == NULL ? -rte_errno : 0;
}

int velo_port_start(uint16_t port, const struct velo_request *request, struct velo_answer *answer) {
    struct rte_ether_addr mac;
    int rc;
    answer->stage = VELO_START;
    if ((rc = rte_eth_dev_start(port)) != 0)
        return rc;
    answer->stage = VELO_MAC;
    if ((rc = rte_eth_macaddr_get(port, &mac)) != 0)
        return rc;
    memcpy(answer->mac, mac.addr_bytes, sizeof answer->mac);
    if (rte_eth_dev_get_mtu(port, &answer->mtu) != 0)
        answer->mtu = 0;
    /* Neighbours are asked for by multicast (IPv6) and broadcast; devices that take all of it anyhow say that they cannot. */
    (void)rte_eth_allmulticast_enable(port);
    if (request->queues > 1 && request->udp_port_first != 0) {
        int rules = 0;
        for (uint32_t queue = 0; queue < request->queues; queue++) {
            const uint16_t udp_port = (uint16_t)(request->udp_port_first + queue);
            rules += flow_rule(port, (uint16_t)queue, udp_port, RTE_FLOW_ITEM_TYPE_IPV4) == 0 &&
                flow_rule(port, (uint16_t)queue, udp_port, RTE_FLOW_ITEM_TYPE_IPV6) == 0;
        }
        if (rules == (int)request->queues)
            answer->steering = VELO_STEERING_FLOW;
        else
            (void)rte_flow_flush(port, NULL);
    }
    return 0;
}

void velo_port_close(uint16_t port, int started) {
    if (started)
        (void)rte_eth_dev_stop(port);
    (void)rte_eth_dev_close(port);
}

void velo_port_link(uint16_t port, struct velo_link *link) {
    struct rte_eth_link answer;
    memset(link, 0, sizeof *link);
    memset(&answer, 0, sizeof answer);
    if (rte_eth_link_get_nowait(port, &answer) != 0)
        return;
    link->up = answer.link_status == RTE_ETH_LINK_UP;
    link->megabits_per_s = answer.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : answer.link_speed;
}

void velo_port_statistics(uint16_t port, struct velo_statistics *statistics) {
    struct rte_eth_stats answer;
    memset(&answer, 0, sizeof answer);
    if (rte_eth_stats_get(port, &answer) != 0)
        return;
    statistics->rx_frames = answer.ipackets;
    statistics->tx_frames = answer.opackets;
    statistics->rx_bytes = answer.ibytes;
    statistics->tx_bytes = answer.obytes;
    statistics->rx_missed = answer.imissed;
    statistics->rx_errors = answer.ierrors;
    statistics->tx_errors = answer.oerrors;
    statistics->rx_no_mbuf = answer.rx_nombuf;
}
