/* What the Rust side of the plugin calls. DPDK's structures and inline functions stay on this side; Rust sees the structures of
 * table.rs only (dataplane/fabric/src/packet/port/dpdk/table.rs), which these mirror. */
#ifndef VELO_DPDK_SHIM_H
#define VELO_DPDK_SHIM_H

#include <stddef.h>
#include <stdint.h>

struct rte_mempool;

struct velo_frame {
    uint8_t *data;
    uint32_t len;
    uint32_t flags;
    void *mbuf;
};

enum { VELO_ARRIVED_GOOD = 1, VELO_ARRIVED_BAD = 2 };
enum { VELO_FILL_CHECKSUM = 1, VELO_FILL_IPV4 = 2, VELO_LINK_BYTES_SHIFT = 8, VELO_NETWORK_BYTES_SHIFT = 16 };
enum { VELO_OFFLOAD_FILLS = 1, VELO_OFFLOAD_CHECKS = 2 };
enum { VELO_STEERING_NONE = 0, VELO_STEERING_FLOW = 1, VELO_STEERING_HASH = 2 };
enum { VELO_BURST = 64 };

/* Indices into STAGES. */
enum velo_stage {
    VELO_FIND, VELO_INFO, VELO_CONFIGURE, VELO_MEMPOOL, VELO_RX_QUEUE, VELO_TX_QUEUE, VELO_START, VELO_MAC, VELO_QUEUES
};

struct velo_request {
    uint32_t queues;
    uint32_t room_bytes;
    uint32_t mtu;
    uint32_t descriptors;
    uint32_t mbufs;
    uint32_t udp_port_first;
    uint32_t offload;
};

struct velo_answer {
    int32_t error;
    uint32_t stage;
    uint8_t mac[6];
    uint16_t mtu;
    uint32_t frame_max_bytes;
    uint32_t offloads;
    uint32_t steering;
    uint32_t rx_descriptors;
    uint32_t tx_descriptors;
    int32_t numa_node;
};

struct velo_link {
    uint32_t up;
    uint32_t megabits_per_s;
};

struct velo_statistics {
    uint64_t rx_frames, tx_frames, rx_bytes, tx_bytes, rx_missed, rx_errors, tx_errors, rx_no_mbuf, rx_unjoined;
};

/* Owned and aligned by the Rust side: one cache line, so that two workers do not share one. */
struct velo_queue {
    struct rte_mempool *mempool;
    uint64_t unjoined; /* arrived in several mbufs that could not be joined */
    uint64_t refused;  /* not sendable by this device */
    uint16_t port;
    uint16_t index;
};

typedef void (*velo_log)(uint32_t level, const char *text, size_t len);

int velo_log_to(velo_log log);
int velo_errno(void);

struct rte_mempool *velo_mempool_create(const char *name, uint32_t mbufs, uint32_t room, int numa_node, int *error);

/* Each step returns 0 or a negative error number; velo_port_configure says in `answer->stage` how far it came. */
int velo_port_configure(const char *name, const struct velo_request *request, struct velo_answer *answer, uint16_t *port);
int velo_port_queue(uint16_t port, uint16_t queue, const struct velo_answer *answer, struct rte_mempool *mempool, uint32_t *stage);
int velo_port_start(uint16_t port, const struct velo_request *request, struct velo_answer *answer);
void velo_port_close(uint16_t port, int started);
void velo_port_link(uint16_t port, struct velo_link *link);
void velo_port_statistics(uint16_t port, struct velo_statistics *statistics);

uint32_t velo_rx_burst(struct velo_queue *queue, struct velo_frame *frames, uint32_t count);
uint32_t velo_tx_burst(struct velo_queue *queue, struct velo_frame *frames, uint32_t count);
uint32_t velo_alloc(struct velo_queue *queue, struct velo_frame *frames, uint32_t count);
void velo_free(struct velo_queue *queue, struct velo_frame *frames, uint32_t count);

#endif
