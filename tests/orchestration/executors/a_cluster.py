"""A Ray cluster on this machine: a head without room for workers, and two nodes with room for one each.

It prints its address. On `lose` from stdin it kills a node with all that runs there, adds another one and prints
`lost`.
"""

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "lose":
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            cluster.add_node(num_cpus=1)
            print("lost", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
