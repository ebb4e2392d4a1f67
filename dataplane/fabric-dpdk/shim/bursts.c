/* The hot path: bursts of frames between a worker and one queue of a device. No call allocates, locks or enters the kernel, but for
 * the first one of a thread. */
#include "shim.h"

#include <pthread.h>
#include <rte_branch_prediction.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_prefetch.h>

static __thread int known_thread;
static pthread_key_t leaving;
static pthread_once_t leaving_once = PTHREAD_ONCE_INIT;

static void thread_leaves(void *unused) {
    (void)unused;
    rte_thread_unregister();
}

static void make_key(void) { pthread_key_create(&leaving, thread_leaves); }

/* A thread that EAL does not know has no cache of its own in a mempool: each mbuf then costs atomic operations. */
static __rte_noinline void meet_thread(void) {
    known_thread = 1;
    if (rte_lcore_id() == LCORE_ID_ANY && rte_thread_register() == 0) {
        pthread_once(&leaving_once, make_key);
        pthread_setspecific(leaving, &leaving);
    }
}

static inline void need_thread(void) {
    if (unlikely(!known_thread))
        meet_thread();
}

/* One thread writes, any may read. */
static inline void count_one(uint64_t *counter) {
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
}

uint32_t velo_rx_burst(struct velo_queue *queue, struct velo_frame *frames, uint32_t count) {
    struct rte_mbuf *mbufs[VELO_BURST];
    uint32_t kept = 0;
    need_thread();
    if (unlikely(count > VELO_BURST))
        count = VELO_BURST;
    uint16_t got = rte_eth_rx_burst(queue->port, queue->index, mbufs, (uint16_t)count);
    for (uint16_t i = 0; i < got; i++) {
        struct rte_mbuf *mbuf = mbufs[i];
        if (i + 2 < got)
            rte_prefetch0(mbufs[i + 2]);
        if (unlikely(mbuf->nb_segs > 1) && rte_pktmbuf_linearize(mbuf) != 0) {
            count_one(&queue->unjoined);
            rte_pktmbuf_free(mbuf);
            continue;
        }
        struct velo_frame *frame = &frames[kept++];
        frame->data = rte_pktmbuf_mtod(mbuf, uint8_t *);
        rte_prefetch0(frame->data);
        frame->len = mbuf->pkt_len;
        frame->mbuf = mbuf;
        const uint64_t flags = mbuf->ol_flags;
        const uint64_t ip = flags & RTE_MBUF_F_RX_IP_CKSUM_MASK, udp = flags & RTE_MBUF_F_RX_L4_CKSUM_MASK;
        frame->flags = ip == RTE_MBUF_F_RX_IP_CKSUM_BAD || udp == RTE_MBUF_F_RX_L4_CKSUM_BAD ? VELO_ARRIVED_BAD
            : ip == RTE_MBUF_F_RX_IP_CKSUM_GOOD && udp == RTE_MBUF_F_RX_L4_CKSUM_GOOD        ? VELO_ARRIVED_GOOD
                                                                                              : 0;
    }
    return kept;
}

uint32_t velo_tx_burst(struct velo_queue *queue, struct velo_frame *frames, uint32_t count) {
    struct rte_mbuf *mbufs[VELO_BURST];
    int filled = 0;
    need_thread();
    if (unlikely(count > VELO_BURST))
        count = VELO_BURST;
    for (uint32_t i = 0; i < count; i++) {
        struct rte_mbuf *mbuf = frames[i].mbuf;
        const uint32_t flags = frames[i].flags;
        mbuf->data_len = (uint16_t)frames[i].len;
        mbuf->pkt_len = frames[i].len;
        if (flags & VELO_FILL_CHECKSUM) {
            filled = 1;
            mbuf->l2_len = (flags >> VELO_LINK_BYTES_SHIFT) & 0x7f;
            mbuf->l3_len = flags >> VELO_NETWORK_BYTES_SHIFT;
            mbuf->ol_flags |= RTE_MBUF_F_TX_UDP_CKSUM |
                (flags & VELO_FILL_IPV4 ? RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_IP_CKSUM : RTE_MBUF_F_TX_IPV6);
        }
        mbufs[i] = mbuf;
    }
    /* Drivers put their own touch to what is to be filled in (the sum of the pseudo-header, mostly). */
    if (filled && count > 0) {
        count = rte_eth_tx_prepare(queue->port, queue->index, mbufs, (uint16_t)count);
        if (unlikely(count == 0)) {
            count_one(&queue->refused);
            rte_pktmbuf_free(mbufs[0]);
            return 1;
        }
    }
    return rte_eth_tx_burst(queue->port, queue->index, mbufs, (uint16_t)count);
}

uint32_t velo_alloc(struct velo_queue *queue, struct velo_frame *frames, uint32_t count) {
    struct rte_mbuf *mbufs[VELO_BURST];
    need_thread();
    if (unlikely(count > VELO_BURST))
        count = VELO_BURST;
    if (unlikely(rte_pktmbuf_alloc_bulk(queue->mempool, mbufs, count) != 0))
        return 0;
    for (uint32_t i = 0; i < count; i++) {
        frames[i].data = rte_pktmbuf_mtod(mbufs[i], uint8_t *);
        frames[i].len = rte_pktmbuf_tailroom(mbufs[i]);
        frames[i].flags = 0;
        frames[i].mbuf = mbufs[i];
    }
    return count;
}

void velo_free(struct velo_queue *queue, struct velo_frame *frames, uint32_t count) {
    struct rte_mbuf *mbufs[VELO_BURST];
    (void)queue;
    need_thread();
    while (count > 0) {
        const uint32_t part = RTE_MIN(count, (uint32_t)VELO_BURST);
        for (uint32_t i = 0; i < part; i++)
            mbufs[i] = frames[i].mbuf;
        rte_pktmbuf_free_bulk(mbufs, part);
        frames += part;
        count -= part;
    }
}
