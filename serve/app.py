"""The Ray Serve application: gateways in front of pools of replicas.

`build` is what a Ray Serve configuration file and a RayService name as `serve.app:build`, with a
ServeConfig's keys as `args`.
"""

import os
import warnings
from typing import Any

import ray.serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from dreambooth_ray.config.allocator import worker_environment
from dreambooth_ray.config.serving import ServeConfig, SubjectScale
from serve.adapter_folder_setting import check_adapter_folder_setting
from serve.auth import Authenticator
from serve.base_models import resolve_model_uris
from serve.deployment import Gateway
from serve.image_service import DEFAULT_POOL
from serve.provenance import Signer
from serve.replica import Replica
from serve.safety import read_policy
from serve.webhooks import check_webhook_secret

_SPARE_REQUESTS = 2


def build(args: ServeConfig) -> ray.serve.Application:
    """The application for a configuration; raises ConfigError for keys that can't be read."""
    _check_gateway_settings(args)
    # Replicas do not see this process's environment.
    cluster_config = args.cluster.model_copy(update={"address": args.cluster.ray_address})
    args = args.model_copy(update={"models": resolve_model_uris(args), "cluster": cluster_config})
    replica_settings = args.replicas
    default_replica_range = SubjectScale(
        minimum=replica_settings.minimum, maximum=replica_settings.maximum
    )
    pools = {DEFAULT_POOL: _build_pool(args, DEFAULT_POOL, default_replica_range)}
    for subject_index, name in enumerate(sorted(args.subjects)):
        pools[f"subject_{subject_index}"] = _build_pool(
            args, f"Replica-{name}", args.subjects[name]
        )
    gateway = ray.serve.deployment(
        Gateway,
        name="Gateway",
        num_replicas=args.gateways,
        max_ongoing_requests=4 * args.limits.open_images,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=args.limits.deadline_s,
        max_surge_percent=100,
    )
    return gateway.bind(args, **pools)


def _check_gateway_settings(config: ServeConfig) -> None:
    """Read what the gateways will read, so that a mistake is seen at once."""
    Authenticator(config.auth)
    read_policy(config.safety.policy)
    check_adapter_folder_setting(config)
    if config.provenance.certificate:
        Signer(config.provenance)
    if webhook_secret := os.environ.get(config.webhook_secret_env):
        check_webhook_secret(webhook_secret, config.webhook_secret_env)


def _build_pool(config: ServeConfig, name: str, scale: SubjectScale) -> Any:
    replica_settings = config.replicas
    with warnings.catch_warnings():
        # metrics_interval_s is deprecated, and look_back_period_s has to be above its default.
        warnings.simplefilter("ignore")
        autoscaling = AutoscalingConfig(
            min_replicas=scale.minimum,
            # A replica that samples once shows that the models can be read, even where it may rest.
            initial_replicas=max(1, scale.minimum),
            max_replicas=max(1, scale.maximum),
            upscale_delay_s=replica_settings.upscale_delay_s,
            downscale_delay_s=replica_settings.downscale_delay_s,
            metrics_interval_s=1.0,
            look_back_period_s=3.0,
            policy=AutoscalingPolicy(
                policy_function="serve.autoscaling_policy:StepsPolicy",
                policy_kwargs={"target_steps": replica_settings.target_steps},
            ),
        )
        deployment = ray.serve.deployment(
            Replica,
            name=name,
            autoscaling_config=autoscaling,
            # Admission keeps the batch full; the rest waits there, where callers take turns.
            max_ongoing_requests=replica_settings.batch + _SPARE_REQUESTS,
            max_queued_requests=config.limits.open_images,
            health_check_period_s=2,
            health_check_timeout_s=30,
            # A redeploy and a downscale let images that have begun finish.
            graceful_shutdown_timeout_s=config.limits.deadline_s,
            max_surge_percent=100,
            ray_actor_options={
                "num_cpus": 0 if replica_settings.gpus else 1,
                "num_gpus": 1 if replica_settings.gpus else 0,
                "runtime_env": worker_environment(),
            },
        )
    return deployment.bind(config)
