// Three plugs of an independent simulator on the addresses given as arguments (hs110, hs110v2, hs300), port 9999, TCP
// and UDP. Prints what they serve as one line of JSON, then "ready". Ends when stdin closes, so that it outlives nobody.
'use strict';

const { Device } = require('tplink-smarthome-simulator');

const PLUGS = [
  { model: 'hs110', alias: 'Kühlschrank', mac: '50:C7:BF:00:81:01', relay: 1 },
  { model: 'hs110v2', alias: 'boiler', mac: '50:C7:BF:00:81:02', relay: 0 },
  { model: 'hs300', alias: 'desk', mac: '50:C7:BF:00:81:03', relay: 1 },
];

/** A reading like no other: which plug and outlet it came from can be told from each of its numbers. */
function reading(plug, outlet) {
  const n = plug * 10 + outlet;
  return {
    power: 40.001 + n * 7.013,
    voltage: 229.107 + n * 0.211,
    current: 0.301 + n * 0.017,
    total: 12.003 + n * 3.001,
  };
}

async function main(addresses) {
  const served = [];
  for (const [n, plug] of PLUGS.entries()) {
    const device = new Device({
      model: plug.model,
      address: addresses[n],
      port: 9999,
      alias: plug.alias,
      data: { mac: plug.mac, deviceId: `8006${String(n).repeat(36)}` },
    });
    const outlets = device.model === 'hs300' ? device.children : [];
    const all = outlets.length === 0 ? [device.data] : outlets;
    all.forEach((outlet, index) => {
      outlet.emeter.realtime = reading(n, index);
    });
    // Every second outlet is off, so that a client that mixes them up is found out.
    outlets.forEach((outlet, index) => {
      outlet.sysinfo.state = (index + 1) % 2;
      outlet.sysinfo.alias = `desk ${index + 1}`;
    });
    if (outlets.length === 0) device.data.system.sysinfo.relay_state = plug.relay;
    device.deviceNetworking.on('error', (error) => console.error(`peers: ${plug.model}: ${error.message}`));
    await device.start();
    served.push({
      address: addresses[n],
      mac: plug.mac,
      alias: plug.alias,
      outlets: outlets.length,
      readings: all.map((_, index) => reading(n, index)),
    });
  }
  console.log(JSON.stringify(served));
  console.log('ready');
}

process.stdin.resume().on('end', () => process.exit(0));
main(process.argv.slice(2)).catch((error) => {
  console.error(`peers: ${error.message}`);
  process.exit(1);
});
