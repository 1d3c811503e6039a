"""Reads one plug or strip with the package tapo and prints what it said as one line of JSON.

    read_tapo.py plug|strip ADDRESS[:PORT] USER PASSWORD
"""

import asyncio
import json
import sys

from tapo import ApiClient


async def main(kind, address, user, password):
    client = ApiClient(user, password)
    if kind == "plug":
        plug = await client.p110(address)
        info, power, usage = await plug.get_device_info(), await plug.get_current_power(), await plug.get_energy_usage()
        return {"nickname": info.nickname, "current_power": power.current_power, "usage_power": usage.current_power}
    strip = await client.p304(address)
    outlets = []
    for child in await strip.get_child_device_list():
        plug = await strip.plug(device_id=child.device_id)
        power = await plug.get_current_power()
        outlets.append({"nickname": child.nickname, "current_power": power.current_power})
    return {"outlets": outlets}


print(json.dumps(asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 60))))
