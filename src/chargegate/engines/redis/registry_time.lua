-- A script, because TIME alone would not say which node of a Cluster to ask.
return redis.call('TIME')
